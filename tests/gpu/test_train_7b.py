"""The benchmark's own arithmetic, and that it runs, where no GPU is."""

import json

import pytest
import torch
import train_7b
from torch.utils.flop_counter import FlopCounterMode

from stillroom.encoders.prompt import pad
from stillroom.learning.flops import backward, forward
from stillroom.learning.memory import Training
from stillroom.learning.shape import shape_of


def test_without_a_gpu_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a GPU"):
        train_7b.main([])


def test_the_tiny_size_trains_with_and_without_gradcache_on_a_cpu(capsys):
    train_7b.main(["--tiny", "--json"])
    plain, cached = json.loads(capsys.readouterr().out)["results"]
    assert (plain["gradcache"], cached["gradcache"]) == (False, True)
    assert plain["tokens_per_second"] > 0 and cached["tokens_per_second"] > 0
    assert plain["mfu"] is None  # no peak is known of a CPU
    assert plain["estimated_gib"] > cached["estimated_gib"]


def test_the_table_names_model_batch_and_machine(capsys):
    train_7b.main(["--tiny", "--pairs", "2"])
    header, titles, plain, cached = capsys.readouterr().out.splitlines()
    assert "2 pairs of 8 + 32 tokens, 64 at once; CPU" in header
    assert titles.split() == ["tokens/s", "MFU", "HFU", "peak", "GiB", "estimated"]
    assert plain.startswith("plain") and cached.startswith("GradCache")


def test_flops_are_those_that_torch_counts():
    size = train_7b.TINY
    model = train_7b.encoder(size, torch.device("cpu"))
    model.backbone.gradient_checkpointing_disable()
    batch = pad(train_7b.batch(size).passages, 0)
    counter = FlopCounterMode(display=False)
    counted = []
    with counter:
        vectors = model(batch)
        counted.append(matrix_products(counter))
        vectors.sum().backward()
        counted.append(matrix_products(counter) - counted[0])

    shape = shape_of(model.backbone.config.to_dict())
    run = Training(rank=size.rank)
    there, back = (of(shape, size.passage_tokens, run) for of in (forward, backward))
    scored = shape.layers * size.passage_tokens**2 * shape.attention
    # Attention's kernels are left out: the counter has them compute the scores again.
    assert counted[0] == size.pairs * (there - 4 * scored)
    assert counted[1] == size.pairs * (back - 8 * scored)


def matrix_products(counter):
    found = counter.get_flop_counts()["Global"]
    return sum(found.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))
