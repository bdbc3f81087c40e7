from itertools import product

from common.data import streams
from common.data.streams import RANDOM_MAPS, mixed_seed


def test_each_purpose_has_a_number_of_its_own():
    named = {name: number for name, number in vars(streams).items() if name.isupper()}
    assert len(set(named.values())) == len(named)


def test_every_part_of_a_key_changes_the_stream():
    keys = list(product((0, 1, 2**40), range(RANDOM_MAPS + 1), (0, 1, 7), (0, 1, 7)))
    assert len({mixed_seed(*key) for key in keys}) == len(keys)


def test_seeds_are_of_63_bits_and_the_same_for_ever():
    """A change here means that published noise and trainings are no longer those of their seeds."""
    assert mixed_seed(1, 2) == 7764949442709860949
    assert mixed_seed(2**32 + 5, 1) == 6058759078026276609
    assert all(0 <= mixed_seed(seed, 3) < 2**63 for seed in range(100))
