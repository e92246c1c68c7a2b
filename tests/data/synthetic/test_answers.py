"""Which answers of a language model are accepted."""

import json

import pytest

from stillroom.data.synthetic.answers import (
    parse_example,
    parse_grade,
    parse_query,
    parse_tasks,
    require_language,
)
from stillroom.data.synthetic.prompts import (
    TASK_TEMPLATES,
    RejectedAnswer,
)

KIND = TASK_TEMPLATES["short-long"]


GOOD = {"query": "boil an egg", "positive": "Six minutes.", "hard_negative": "Eggs are round."}


def without(field):
    return {name: text for name, text in GOOD.items() if name != field}


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(GOOD),
        f"\n {json.dumps(GOOD, indent=2)}\n",
        f"Here you are:\n```json\n{json.dumps(GOOD)}\n```\nAnything else?",
        f"```\n{json.dumps(GOOD)}\n```",
    ],
)
def test_an_example_is_parsed_with_or_without_a_code_fence(answer):
    assert parse_example(answer, KIND) == tuple(GOOD.values())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Sure! I can do that.", "no JSON"),
        (json.dumps(GOOD)[:-3], "no JSON"),
        (json.dumps(GOOD) + " I hope that this helps.", "no JSON"),
        ("[" * 100_000, "no JSON"),
        (json.dumps([GOOD]), "no JSON object"),
        (json.dumps(without("positive")), "other fields than requested"),
        (json.dumps({**GOOD, "why": "because"}), "other fields than requested"),
        (json.dumps({**GOOD, "positive": ["Six minutes."]}), "a field that is no text"),
        (json.dumps({**GOOD, "positive": None}), "a field that is no text"),
        (json.dumps({**GOOD, "query": " \n"}), "an empty field"),
        (json.dumps({**GOOD, "query": "\ud83d"}), "half a surrogate pair"),
        (json.dumps({**GOOD, "hard_negative": "six  MINUTES."}), "two of its texts are the same"),
        (json.dumps({**GOOD, "query": KIND.query}), "repeats the request"),
    ],
)
def test_an_answer_that_is_no_example_is_rejected_with_its_reason(answer, reason):
    with pytest.raises(RejectedAnswer) as error:
        parse_example(answer, KIND)
    assert str(error.value) == reason


@pytest.mark.parametrize(
    ("parse", "answer", "expected"),
    [
        (parse_tasks, '["Find a", "find  A", "Find b "]', ["Find a", "Find b"]),
        (parse_tasks, '{"tasks": ["Find a"]}', "no JSON list"),
        (parse_tasks, "[]", "a list, but not of texts"),
        (parse_tasks, '["Find a", 3]', "a list, but not of texts"),
        (parse_query, '{"task": "Find it", "query": "it"}', ("Find it", "it")),
        (parse_query, '{"query": "it"}', "other fields than requested"),
        (parse_grade, " 3.\n", 3),
        (parse_grade, "0", 0),
        (parse_grade, "4", "no grade"),
        (parse_grade, "2 of 3", "no grade"),
        (parse_grade, "３", "no grade"),
    ],
)
def test_tasks_queries_and_grades_are_parsed_strictly(parse, answer, expected):
    if not isinstance(expected, str):
        assert parse(answer) == expected
        return
    with pytest.raises(RejectedAnswer, match=f"^{expected}$"):
        parse(answer)


def test_a_long_text_in_the_language_asked_for_hides_no_other():
    german = "Das Wasser im Fluss ist das ganze Jahr über klar und kalt, auch im Sommer. " * 4
    english = "The water in the river is clear and cold all through the year, even in summer."
    require_language([german, german[:150]], "de")
    with pytest.raises(RejectedAnswer, match="not in German"):
        require_language([german, english], "de")
