import math

import pytest

from common.training.kept import Kept


def counted(values):
    calls = []

    def measure():
        calls.append(1)
        return values

    return calls, measure


def test_what_was_measured_is_read_again_with_its_infinities(tmp_path):
    calls, measure = counted({"losses": [1.5, math.inf], "places": (1, 2)})
    kept = Kept(tmp_path / "kept", {"seed": 0})
    first = kept.get("f, clamped", {"steps": 3}, measure)
    again = Kept(tmp_path / "kept", {"seed": 0}).get("f, clamped", {"steps": 3}, measure)
    assert first == again == {"losses": [1.5, math.inf], "places": [1, 2]}
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("about", "more", "fresh"),
    [({"seed": 1}, 3, False), ({"seed": 0}, 4, False), ({"seed": 0}, 3, True)],
)
def test_another_flag_and_fresh_measure_anew(tmp_path, about, more, fresh):
    calls, measure = counted({"loss": 1.0})
    Kept(tmp_path, {"seed": 0}).get("none", {"steps": 3}, measure)
    Kept(tmp_path, about, fresh).get("none", {"steps": more}, measure)
    assert len(calls) == 2


def test_a_stop_keeps_those_that_are_done(tmp_path):
    kept, (calls, measure) = Kept(tmp_path, {}), counted({"loss": 1.0})
    kept.get("first", {}, measure)

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.get("second", {}, stopped)
    kept.get("first", {}, stopped)
    kept.get("second", {}, measure)
    assert len(calls) == 2
