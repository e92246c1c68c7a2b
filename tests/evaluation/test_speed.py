"""Speeds are measured in turns, and their spread shows whether they are reliable."""

import pytest

from stillroom.evaluation.speed import (
    MIN_TEXTS,
    Speed,
    is_unreliable,
    texts_per_round,
    time_in_turns,
)


class Machine:
    """Fake encoders on a fake clock: a call takes its seconds times the machine's load."""

    def __init__(self):
        self.now, self.load, self.calls = 0.0, 1.0, []

    def encoder(self, name, seconds, texts=10):
        def encode():
            self.calls.append(name)
            self.now += seconds * self.load
            return texts

        return encode


def test_encoders_take_turns_after_one_call_each_to_warm_up():
    machine = Machine()
    encoders = {"a": machine.encoder("a", 1.0), "b": machine.encoder("b", 2.0)}
    speeds = time_in_turns(encoders, rounds=3, clock=lambda: machine.now)
    assert machine.calls == ["a", "b"] * 4
    assert speeds == {"a": Speed((10.0,) * 3), "b": Speed((5.0,) * 3)}


def test_temporary_load_leaves_the_median_and_shows_in_the_spread():
    machine = Machine()
    plain = machine.encoder("a", 1.0)

    def loaded_in_one_round():
        machine.load = 4.0 if len(machine.calls) == 2 else 1.0
        return plain()

    [speed] = time_in_turns({"a": loaded_in_one_round}, clock=lambda: machine.now).values()
    assert speed.texts_per_second == 10.0
    assert speed.spread == 4.0


@pytest.mark.parametrize(("spread", "unreliable"), [(None, False), (1.0, False), (1.6, True)])
def test_a_wide_spread_makes_a_speed_unreliable(spread, unreliable):
    assert is_unreliable(spread) is unreliable


def test_a_round_takes_about_as_long_for_every_encoder():
    assert texts_per_round(800.0) == 800
    assert texts_per_round(2.0) == MIN_TEXTS
