"""Texts stream through the stage `vectors`: by reference, window by window, with flat memory."""

import os
import signal
import threading
import time

import numpy as np
import psutil
import pyarrow as pa
import pytest

from stillroom.config.scale import EmbeddingActors
from stillroom.encoders.contract import BaseContract
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.interface import TokenEncoder
from stillroom.encoders.vectors.stored import StoredVectors, shard_path
from stillroom.stages.vectors import digests, texts
from stillroom.stages.vectors.embed import embed
from stillroom.stages.vectors.encode import RowEncoder
from stillroom.stages.vectors.reuse import KnownVectors
from stillroom.stages.vectors.texts import TextsToEmbed
from stillroom.storage.column_writer import TableWriter
from stillroom.storage.columns import Lookup, TextColumn
from support.peak_memory import peak_bytes

CONTRACT = BaseContract(max_tokens=8, dims=(4,), normalise=False, similarity="dot", space="s")


def write_texts(folder, count):
    """Writes texts of several lengths; returns the function that opens them."""
    with TableWriter(folder, texts=["text"], numbers={}) as table:
        for start in range(0, count, 1000):
            rows = range(start, min(start + 1000, count))
            table.append(text=pa.array([f"{'word ' * (row % 5)}{row}" for row in rows]))

    def open_texts():
        column = TextColumn(folder, "text")
        prompts = Lookup[str | None].repeated(None, len(column))
        return [TextsToEmbed("passages", "passage", column, prompts)]

    return open_texts


class Lengths:
    """An encoder whose vectors say which text they are of."""

    contract = CONTRACT

    def encode(self, texts, role, *, prompt):
        numbers = np.array([int(text.split()[-1]) for text in texts])
        lengths = np.array([*map(len, texts)])
        return np.stack([np.ones(len(texts)), lengths, numbers // 1000, numbers % 1000], axis=1)


@pytest.mark.full  # some 20 s
def test_a_killed_actor_costs_no_finished_shard(ray_cluster, decoder, tmp_path):
    teacher = tmp_path / "teacher"
    save_encoder(
        create_encoder(
            str(decoder), space="s", options=ContractOptions(pooling="mean", precision="float32")
        ),
        teacher,
    )
    open_texts = write_texts(tmp_path / "texts", 160)
    folder, shards = tmp_path / "passages", 80
    folder.mkdir()
    # A shard that an earlier driver wrote before it died.
    np.save(shard_path(folder, 3), np.full((2, 64), 7, np.float16))
    inodes_before = {}

    def kill():
        """Kills the actor once some of its shards exist."""
        deadline = time.monotonic() + 120
        while len([*folder.glob("shard-*.npy")]) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.001)  # polls for a condition, with a deadline
        for process in psutil.Process().children(recursive=True):
            if process.cmdline() and process.cmdline()[0].startswith("ray::EncodingActor"):
                inodes_before.update({f: f.stat().st_ino for f in folder.glob("shard-*.npy")})
                os.kill(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    counts = embed(open_texts, teacher, tmp_path, 2, EmbeddingActors())
    killer.join()
    assert 5 <= len(inodes_before) < shards
    assert all(file.stat().st_ino == inode for file, inode in inodes_before.items())
    assert (counts.resumed, counts.encoded) == (2, 158)
    kept = np.load(shard_path(folder, 3))
    np.testing.assert_array_equal(kept, np.full_like(kept, 7))
    stored = StoredVectors(folder)
    rows = np.delete(stored.order, [6, 7])
    chosen = [open_texts()[0].texts[row] for row in rows]
    expected = load_encoder(teacher).encode(chosen, "passage")
    np.testing.assert_allclose(stored[rows], expected, atol=1e-3)


def test_windows_are_described_on_workers_and_each_row_gets_its_own_vector(
    ray_cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(texts, "WINDOW_ROWS", 100)
    monkeypatch.setattr(digests, "SORTED_AT_ONCE", 64)
    open_texts = write_texts(tmp_path / "texts", 1234)
    known = KnownVectors([], CONTRACT)
    embed(open_texts, tmp_path, tmp_path, 7, EmbeddingActors(), api=Lengths(), known=known)
    stored = StoredVectors(tmp_path / "passages")
    column = [*open_texts()[0].texts]
    np.testing.assert_array_equal(
        stored[np.arange(1234)], Lengths().encode(column, "passage", prompt=None)
    )
    lengths = np.array([*map(len, column)])[stored.order]
    for start in range(0, 1234, 98):  # whole shards of at most 100 rows
        window = stored.order[start : start + 98]
        assert sorted(window) == [*range(start, min(start + 98, 1234))]
        assert (np.diff(lengths[start : start + 98]) >= 0).all()
    index = digests.DigestIndex(tmp_path / "passages")
    assert (np.diff(index.digests.view(">u8").reshape(-1, 2)[:, 0].astype(float)) >= 0).all()
    found = index.find(digests.text_digests("passage", [None] * 1234, column))
    np.testing.assert_array_equal(found, np.arange(1234))


def test_shards_that_hold_rows_of_another_order_are_made_again(tmp_path):
    open_texts = write_texts(tmp_path / "texts", 30)
    folder = tmp_path / "passages"
    folder.mkdir()
    np.save(folder / "order.npy", np.arange(30))  # as an earlier version may have ordered them
    np.save(shard_path(folder, 0), np.full((7, 4), 9, np.float16))
    embed(open_texts, tmp_path, tmp_path, 7, EmbeddingActors(), api=Lengths())
    before = {file: file.stat().st_ino for file in folder.glob("shard-*")}
    assert not (StoredVectors(folder)[np.arange(30)] == 9).all(axis=1).any()
    assert len(before) == 5


def test_the_driver_s_memory_does_not_grow_with_the_texts(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "WINDOW_ROWS", 2048)
    monkeypatch.setattr(digests, "SORTED_AT_ONCE", 2048)

    def embed_texts(count):
        out = tmp_path / str(count)
        open_texts = write_texts(out / "texts", count)
        known = KnownVectors([], CONTRACT)
        return peak_bytes(
            lambda: embed(open_texts, out, out, 256, EmbeddingActors(), api=Lengths(), known=known)
        )

    embed_texts(2048)  # imports and caches
    few, many = embed_texts(6_000), embed_texts(60_000)
    assert many < 1.2 * few, (few, many)


def test_the_next_shard_is_tokenised_while_the_model_computes(tmp_path):
    tokenised = threading.Semaphore(0)

    class Waiting(TokenEncoder):
        """Computes only when another shard has been tokenised."""

        contract = CONTRACT

        def __init__(self):
            self.prompter = self

        def copy(self):
            return self

        def __call__(self, texts, role, *, prompt):
            tokenised.release()
            return [len(text) for text in texts]

        def encode_tokens(self, tokens, *, batch_tokens=None, dims=None):
            for _ in range(2):
                assert tokenised.acquire(timeout=60), "nothing was tokenised meanwhile"
            tokenised.release()
            return np.array([[1, length, 0, 0] for length in tokens])

    open_texts = write_texts(tmp_path / "texts", 20)
    encoder = RowEncoder(open_texts(), Waiting())
    results = {}

    def encode(number):
        results[number] = encoder(0, np.arange(10) + 10 * number, False)

    threads = [threading.Thread(target=encode, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    tokenised.release()  # for the last forward, which nothing follows
    for thread in threads:
        thread.join()
    for number in range(2):
        rows = open_texts()[0].texts[10 * number : 10 * number + 10]
        assert not results[number].failed
        assert results[number].vectors[:, 1].tolist() == [*map(len, rows)]
