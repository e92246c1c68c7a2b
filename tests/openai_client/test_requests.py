"""The number of calls that a budget allows."""

import pytest

from stillroom.openai_client.requests import Usage, affordable_calls


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({}, float("inf")),
        ({"tokens": 1000}, 6),  # 1,000 − 150 spent, at 130 each
        ({"tokens": 100}, 0),
        ({"cost": 0.001, "price_in": 1.0, "price_out": 2.0}, 5),  # 1,000 − 200, at 160
        ({"cost": 0.001, "tokens": 400, "price_in": 1.0, "price_out": 2.0}, 1),
        ({"cost": 0.001, "price_in": 0.0, "price_out": 0.0}, float("inf")),
    ],
)
def test_a_budget_limits_the_number_of_calls(budget, expected):
    arguments = {"tokens": None, "cost": None, "price_in": 0.0, "price_out": 0.0, **budget}
    assert affordable_calls(Usage(100, 50), Usage(100, 30), **arguments) == expected
