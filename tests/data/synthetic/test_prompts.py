"""What prompts say."""

import pytest

from stillroom.data.synthetic.prompts import (
    TASK_TEMPLATES,
    ExampleControls,
    example_prompt,
)


@pytest.mark.parametrize("name", TASK_TEMPLATES)
def test_prompts_state_their_controls_and_equal_seeds_draw_equal_controls(name):
    kind, languages = TASK_TEMPLATES[name], ("English", "Deutsch", "日本語")
    drawn = [ExampleControls.draw(kind, languages, (3, i)) for i in range(60)]
    assert drawn == [ExampleControls.draw(kind, languages, (3, i)) for i in range(60)]
    for one in drawn:
        prompt = example_prompt(kind, "Find the {task}", one)
        assert "Find the {task}" in prompt
        assert f"{one.query_words} words, in {one.languages[0]}" in prompt
        assert (
            f"in {one.languages[1]}" in prompt and one.clarity in prompt and one.audience in prompt
        )
        assert (one.languages[0] != one.languages[1]) == kind.two_languages
    assert {one.query_words for one in drawn} == set(kind.query_words)
    assert {one.languages[0] for one in drawn} == set(languages)
