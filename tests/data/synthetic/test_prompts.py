"""Prompts for synthetic examples."""

import pytest

from stillroom.config.languages import LANGUAGES
from stillroom.data.synthetic.prompts import (
    TASK_TEMPLATES,
    ExampleControls,
    example_prompt,
    query_prompt,
)


@pytest.mark.parametrize("name", TASK_TEMPLATES)
def test_prompts_state_their_controls_and_equal_seeds_draw_equal_controls(name):
    kind, languages = TASK_TEMPLATES[name], {"en": 0.6, "de": 0.2, "ja": 0.2}
    all_controls = [ExampleControls.draw(kind, languages, (3, i)) for i in range(60)]
    assert all_controls == [ExampleControls.draw(kind, languages, (3, i)) for i in range(60)]
    for controls in all_controls:
        prompt = example_prompt(kind, "Find the {task}", controls)
        assert "Find the {task}" in prompt
        query_language, passage_language = (LANGUAGES[code] for code in controls.languages)
        assert f"{controls.query_words} words, in {query_language}" in prompt
        assert (
            f"in {passage_language}" in prompt
            and controls.clarity in prompt
            and controls.audience in prompt
        )
        assert (controls.languages[0] != controls.languages[1]) == kind.two_languages
    assert {controls.query_words for controls in all_controls} == set(kind.query_words)
    assert {controls.languages[0] for controls in all_controls} == set(languages)


def test_languages_are_drawn_by_their_shares_and_a_single_one_changes_no_other_draw():
    kind = TASK_TEMPLATES["short-long"]
    shares = {"de": 3, "ja": 1}
    drawn = [ExampleControls.draw(kind, shares, (3, i)).languages[0] for i in range(400)]
    assert 270 < drawn.count("de") < 330
    alone = [ExampleControls.draw(kind, {code: 1.0}, (3, 7)) for code in ("en", "ja")]
    assert (alone[0].query_words, alone[0].audience) == (alone[1].query_words, alone[1].audience)


def test_a_passage_s_query_is_asked_for_in_a_language_or_without_a_word_of_it():
    assert "would type, in Japanese;" in query_prompt("text", "ja")
    assert "would type;" in query_prompt("text")
