"""Which parts of sources a task reads together."""

from stillroom.cluster.placement import Place
from stillroom.config.corpus import DocstringSource, DocumentSource, FileSource
from stillroom.stages.corpus.reading import SizedPart, _batches
from stillroom.stages.corpus.sources import SourcePart

FILES = FileSource(format="files", pairs=("x",), passages=("x",))


def part(source, kind, file, size):
    return SizedPart(source, SourcePart(FILES, kind, file), size)


def batches(parts, places=None):
    made = _batches(parts, places or [Place.ANY_NODE] * len(parts), max_bytes=100)
    assert [batch.number for batch, _ in made] == list(range(len(made)))
    return [(batch.source, batch.kind, "".join(p.file for p in batch.parts)) for batch, _ in made]


def test_small_parts_are_read_together_in_their_order_and_large_ones_alone():
    parts = [
        *(part(0, "pairs", name, 40) for name in "abcde"),
        part(0, "pairs", "f", 1000),
        part(0, "pairs", "g", 1),
        part(0, "passages", "h", 1),
        part(1, "passages", "i", 1),
    ]
    assert batches(parts) == [
        (0, "pairs", "ab"), (0, "pairs", "cd"), (0, "pairs", "e"), (0, "pairs", "f"),
        (0, "pairs", "g"), (0, "passages", "h"), (1, "passages", "i"),
    ]  # fmt: skip
    assert batches([]) == []


def test_parts_that_only_one_machine_has_are_not_read_with_those_of_all():
    parts = [part(0, "pairs", name, 1) for name in "abc"]
    places = [Place.ANY_NODE, Place.DRIVER_NODE, Place.DRIVER_NODE]
    assert batches(parts, places) == [(0, "pairs", "a"), (0, "pairs", "bc")]


def test_what_a_machine_needs_to_read_a_part_is_its_local_files(tmp_path):
    (tmp_path / "tokenizer.json").touch()
    documents = DocumentSource(format="documents", passages=("x",), tokenizer=str(tmp_path))
    files_of = {
        SourcePart(FILES, "pairs", "own.jsonl"): ["own.jsonl"],
        SourcePart(FILES, "pairs", "s3://bucket/own.jsonl"): [],
        SourcePart(FILES, "pairs", "hub:name"): None,
        SourcePart(DocstringSource(format="docstrings"), "pairs"): None,
        SourcePart(documents, "passages", "a.md"): ["a.md", str(tmp_path / "tokenizer.json")],
    }
    assert {part: part.local_files for part in files_of} == files_of
