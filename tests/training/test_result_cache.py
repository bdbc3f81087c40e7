import math

import pytest

from common.training.result_cache import ResultCache


def counted(result):
    calls = []

    def measure():
        calls.append(1)
        return result

    return calls, measure


def test_what_was_measured_is_read_again_with_its_infinities(tmp_path):
    calls, measure = counted({"losses": [1.5, math.inf], "places": (1, 2)})
    caches = [ResultCache(tmp_path / "kept", {"seed": 0}) for _ in range(2)]
    results = [cache.get("f, clamped", {"steps": 3}, measure) for cache in caches]
    assert results == [{"losses": [1.5, math.inf], "places": [1, 2]}] * 2
    assert len(calls) == 1


@pytest.mark.parametrize(("seed", "steps", "fresh"), [(1, 3, False), (0, 4, False), (0, 3, True)])
def test_another_flag_and_fresh_measure_anew(tmp_path, seed, steps, fresh):
    calls, measure = counted({"loss": 1.0})
    ResultCache(tmp_path, {"seed": 0}).get("none", {"steps": 3}, measure)
    ResultCache(tmp_path, {"seed": seed}, fresh).get("none", {"steps": steps}, measure)
    assert len(calls) == 2
