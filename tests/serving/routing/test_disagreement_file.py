import json

from stillroom.data.readers.files import detect_file_kind, read_passages
from stillroom.serving.routing.disagreement_file import DisagreementFile


def test_the_texts_with_the_least_agreement_are_kept_across_restarts(tmp_path):
    file = tmp_path / "kept" / "tiny.jsonl"
    texts = {f"text {number}\u2028\ud800": number / 100 for number in range(100)}
    disagreements = DisagreementFile(file, max_texts=10)
    for text, agreement in reversed(texts.items()):
        disagreements.add({text: agreement})
    DisagreementFile(file, max_texts=10).add({"the worst": -1.0, "the best": 1.0})
    assert [json.loads(line)["agreement"] for line in file.read_text().splitlines()] == [
        -1.0, *(number / 100 for number in range(9))
    ]  # fmt: skip
    assert list(file.parent.iterdir()) == [file]


def test_the_file_is_read_as_passages(tmp_path):
    file = tmp_path / "tiny.jsonl"
    DisagreementFile(file, max_texts=10).add({"how do I sort?": 0.2, "a 'quoted' \u2028 text": 0.1})
    assert detect_file_kind(str(file)) == ("text", "passages")
    assert list(read_passages(file)) == ["a 'quoted' \u2028 text", "how do I sort?"]
