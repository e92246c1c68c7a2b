"""Prompts for synthetic examples."""

import pytest

from stillroom.data.synthetic.prompts import (
    TASK_TEMPLATES,
    ExampleControls,
    example_prompt,
)


@pytest.mark.parametrize("name", TASK_TEMPLATES)
def test_prompts_state_their_controls_and_equal_seeds_draw_equal_controls(name):
    kind, languages = TASK_TEMPLATES[name], ("English", "Deutsch", "日本語")
    all_controls = [ExampleControls.draw(kind, languages, (3, i)) for i in range(60)]
    assert all_controls == [ExampleControls.draw(kind, languages, (3, i)) for i in range(60)]
    for controls in all_controls:
        prompt = example_prompt(kind, "Find the {task}", controls)
        assert "Find the {task}" in prompt
        assert f"{controls.query_words} words, in {controls.languages[0]}" in prompt
        assert (
            f"in {controls.languages[1]}" in prompt
            and controls.clarity in prompt
            and controls.audience in prompt
        )
        assert (controls.languages[0] != controls.languages[1]) == kind.two_languages
    assert {controls.query_words for controls in all_controls} == set(kind.query_words)
    assert {controls.languages[0] for controls in all_controls} == set(languages)
