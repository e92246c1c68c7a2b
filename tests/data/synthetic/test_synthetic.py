"""What a language model is asked, and what its answers are worth."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.data.synthetic.answers import parse_example, parse_grade, parse_query, parse_tasks
from stillroom.data.synthetic.prompts import KINDS, Controls, Rejected, example_prompt
from stillroom.data.synthetic.selection import choose, fuse, query_likelihood

KIND = KINDS["short-long"]
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
def test_an_example_is_read_alone_or_in_a_fenced_block(answer):
    assert parse_example(answer, KIND) == tuple(GOOD.values())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Sure! I can do that.", "no JSON"),
        (json.dumps(GOOD)[:-3], "no JSON"),
        (json.dumps(GOOD) + " I hope that this helps.", "no JSON"),
        ("[" * 100_000, "no JSON"),
        (json.dumps([GOOD]), "no JSON object"),
        (json.dumps(without("positive")), "other fields than asked for"),
        (json.dumps({**GOOD, "why": "because"}), "other fields than asked for"),
        (json.dumps({**GOOD, "positive": ["Six minutes."]}), "a field that is no text"),
        (json.dumps({**GOOD, "positive": None}), "a field that is no text"),
        (json.dumps({**GOOD, "query": " \n"}), "an empty field"),
        (json.dumps({**GOOD, "query": "\ud83d"}), "half a surrogate pair"),
        (json.dumps({**GOOD, "hard_negative": "six  MINUTES."}), "two of its texts are the same"),
        (json.dumps({**GOOD, "query": KIND.query}), "repeats what it was asked for"),
    ],
)
def test_an_answer_that_is_no_example_is_rejected_with_its_reason(answer, reason):
    with pytest.raises(Rejected) as fault:
        parse_example(answer, KIND)
    assert str(fault.value) == reason


@pytest.mark.parametrize(
    ("parse", "answer", "expected"),
    [
        (parse_tasks, '["Find a", "find  A", "Find b "]', ["Find a", "Find b"]),
        (parse_tasks, '{"tasks": ["Find a"]}', "no JSON list"),
        (parse_tasks, "[]", "a list, but not of texts"),
        (parse_tasks, '["Find a", 3]', "a list, but not of texts"),
        (parse_query, '{"task": "Find it", "query": "it"}', ("Find it", "it")),
        (parse_query, '{"query": "it"}', "other fields than asked for"),
        (parse_grade, " 3.\n", 3),
        (parse_grade, "0", 0),
        (parse_grade, "4", "no grade"),
        (parse_grade, "2 of 3", "no grade"),
        (parse_grade, "３", "no grade"),
    ],
)
def test_tasks_queries_and_grades_are_read_strictly(parse, answer, expected):
    if not isinstance(expected, str):
        assert parse(answer) == expected
        return
    with pytest.raises(Rejected, match=f"^{expected}$"):
        parse(answer)


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_says_what_was_drawn_and_the_same_seed_draws_the_same(name):
    kind, languages = KINDS[name], ("English", "Deutsch", "日本語")
    drawn = [Controls.drawn(kind, languages, (3, i)) for i in range(60)]
    assert drawn == [Controls.drawn(kind, languages, (3, i)) for i in range(60)]
    for one in drawn:
        prompt = example_prompt(kind, "Find the {task}", one)
        assert "Find the {task}" in prompt
        assert f"{one.query_words} words, in {one.languages[0]}" in prompt
        assert f"in {one.languages[1]}" in prompt and one.clarity in prompt and one.reader in prompt
        assert (one.languages[0] != one.languages[1]) == kind.two_languages
    assert {one.query_words for one in drawn} == set(kind.query_words)
    assert {one.languages[0] for one in drawn} == set(languages)


scorings = st.integers(1, 8).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=3)
)


@settings(max_examples=100, deadline=None)
@given(scorings)
def test_ranks_are_fused_as_exact_sums_have_it(scorings):
    def rank(scores, place):
        return 1 + sum(score > scores[place] for score in scores)

    places = range(len(scorings[0]))
    exact = {p: sum(Fraction(1, 60 + rank(scores, p)) for scores in scorings) for p in places}
    assert fuse(scorings) == sorted(places, key=lambda p: (-exact[p], p))


def test_a_single_vote_of_two_lets_the_other_break_its_ties():
    assert fuse([[3, 3, 1], [-2.0, -1.0, -3.0]]) == [1, 0, 2]


PASSAGES = ("seed", "better", "related", "off", "Better ")


@pytest.mark.parametrize(
    ("grades", "likelihoods", "expected"),
    [
        ((2, 3, 1, 0, None), None, (1, 3)),
        # Equal grades: the likelihood decides, and without it the retriever's order.
        ((3, 3, 1, 0, None), (-2.0, -1.0, -3.0, -4.0, 0.0), (1, 3)),
        ((3, 3, 1, 0, None), None, (0, 3)),
        # Nothing is graded below the positive, or only a copy of it.
        ((3, 3, 3, None, None), None, (0, None)),
        ((None, 3, None, None, 0), None, (1, None)),
        ((1, 0, None, None, None), None, "no passage answers the query"),
        ((None,) * 5, None, "no passage was graded"),
    ],
)
def test_the_best_ranked_is_the_positive_and_a_worse_graded_the_negative(
    grades, likelihoods, expected
):
    if isinstance(expected, str):
        with pytest.raises(Rejected, match=expected):
            choose(PASSAGES, grades, likelihoods, least_grade=2)
    else:
        assert choose(PASSAGES, grades, likelihoods, least_grade=2) == expected


def test_a_sampled_negative_is_of_the_lower_half_and_not_always_the_last():
    grades = [3, 2, 2, 1, 1, 0, 0]
    texts = [f"text {i}" for i in range(7)]
    rng = np.random.default_rng(0)
    drawn = {choose(texts, grades, None, least_grade=2, sampled=rng)[1] for _ in range(50)}
    assert drawn == {4, 5, 6}


PROMPT, QUERY = "<text>\nñandú\n</text>\nQuery:", " fast bird"


@pytest.mark.parametrize(
    ("tokens", "written"),
    [
        (["<text>\n", "ñandú", "\n</text>\n", "Query:", " fast", " bird", "!"], "!"),
        # The server stopped at once; and one that shows bytes of a character one by one.
        (["<text>\n", "ñandú", "\n</text>\n", "Query:", " fast", " bird"], ""),
        (["<text>\n", "\\xc3", "\\xb1", "andú", "\n</text>\n", "Query:", " fast", " bird"], ""),
    ],
)
def test_the_likelihood_is_of_the_query_s_tokens_alone(tokens, written):
    logprobs = [None, *(-100.0 for _ in tokens[1:])]
    for at, token in enumerate(tokens):
        logprobs[at] = {" fast": -3.0, " bird": -1.0}.get(token, logprobs[at])
    found = query_likelihood(PROMPT + QUERY + written, tokens, logprobs, PROMPT, QUERY)
    assert found == -2.0


@pytest.mark.parametrize(
    ("echoed", "tokens"),
    [("!", ["!"]), (PROMPT + QUERY, [" bird"]), (PROMPT + QUERY, []), (PROMPT, [PROMPT])],
)
def test_what_was_not_echoed_has_no_likelihood(echoed, tokens):
    with pytest.raises(Rejected):
        query_likelihood(echoed, tokens, [-1.0] * len(tokens), PROMPT, QUERY)
