"""A recipe whose student cannot learn from its teacher's vectors is refused before any run."""

import pytest

from stillroom.config.recipe import Recipe
from stillroom.config.validation import validate
from stillroom.encoders.files.save import save_encoder
from stillroom.errors import UserError
from stillroom.preflight.similarity import check_similarity
from stillroom.storage.artifacts import Store
from support.make_encoder import make_encoder


@pytest.fixture(scope="module")
def folders(encoder, tmp_path_factory):
    """Published models that cosine and that dot compares."""
    root = tmp_path_factory.mktemp("published")
    for similarity in ("cosine", "dot"):
        model = make_encoder(encoder, precision="float32", similarity=similarity)
        save_encoder(model, root / similarity)
        (root / similarity / "contract.json").unlink()
    return root


PHASE = {"data": "pairs", "steps": 1, "global_batch": 8, "learning_rate": 1e-3, "hard_negatives": 0}


def check(folders, tmp_path, teacher, student, losses=None):
    phase = PHASE if losses is None else {**PHASE, "losses": losses}
    content = {
        "name": "tiny",
        "corpus": {
            "sources": {"environment": {"format": "docstrings", "packages": ["numpy"]}},
            "held_out": {"queries": 8, "passages": 8},
        },
        "teacher": teacher,
        "student": {"base": str(folders / "cosine"), "phases": [phase], **student},
    }
    return check_similarity(validate(Recipe, content, "recipe"), Store(str(tmp_path))).detail


def test_a_folder_s_own_similarity_is_found_and_the_recipe_s_replaces_it(folders, tmp_path):
    dot, cosine, own = {"base": str(folders / "dot")}, {"base": str(folders / "cosine")}, {}
    for teacher, student, expected in (
        (dot, own, "teacher by dot, student by cosine"),
        (dot, {"space": "teacher"}, "teacher by dot, student by dot"),
        (cosine, own, "teacher by cosine, student by cosine"),
        (cosine, {"similarity": "dot"}, "teacher by cosine, student by dot"),
        ({**cosine, "similarity": "dot"}, own, "teacher by dot, student by cosine"),
        ({**dot, "similarity": "cosine"}, own, "teacher by cosine, student by cosine"),
    ):
        assert check(folders, tmp_path, teacher, student) == expected


@pytest.mark.parametrize(
    ("student", "losses", "error"),
    [
        ({}, {"margin_mse": 1.0}, r"phases\[0\]\.losses\.margin_mse: .* have another scale"),
        (
            {"space": "teacher"},
            {"cosine": 1.0},
            r"student\.phases\[0\]\.losses\.cosine: does not see the lengths",
        ),
        (
            {"space": "teacher", "similarity": "cosine"},
            None,
            r"student\.similarity: is cosine, and the teacher's space is searched by dot",
        ),
    ],
)
def test_what_loses_lengths_is_refused_by_name(folders, tmp_path, student, losses, error):
    with pytest.raises(UserError, match=error):
        check(folders, tmp_path, {"base": str(folders / "dot")}, student, losses)


def test_a_member_that_dot_compares_is_refused_unless_the_recipe_says_cosine(folders, tmp_path):
    cosine, dot = ({"base": str(folders / name)} for name in ("cosine", "dot"))
    with pytest.raises(UserError, match=r"teacher\.members\.1: .* is compared by dot"):
        check(folders, tmp_path, {"members": [cosine, dot]}, {})
    members = {"members": [cosine, {**dot, "similarity": "cosine"}]}
    assert check(folders, tmp_path, members, {}) == "teacher by cosine, student by cosine"
