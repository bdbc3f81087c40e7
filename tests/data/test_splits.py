import numpy as np
import pytest

from common.data.splits import check_split, split_sizes
from common.errors import UserError
from tests.data.conftest import SPLIT


def test_split_sizes_by_largest_remainder():
    assert split_sizes(600, SPLIT) == [420, 90, 90]
    assert split_sizes(60, SPLIT) == [42, 9, 9]
    assert split_sizes(10, SPLIT) == [7, 2, 1]  # 7, 1.5, 1.5
    assert split_sizes(8, SPLIT) == [6, 1, 1]  # 5.6, 1.2, 1.2
    assert split_sizes(5, (0.5, 0.25, 0.25)) == [3, 1, 1]  # 2.5, 1.25, 1.25
    assert split_sizes(3, SPLIT) == [1, 1, 1]
    assert split_sizes(10, (0.98, 0.01, 0.01)) == [8, 1, 1]
    with pytest.raises(UserError, match=r"2 images a class: a class needs at least 3"):
        split_sizes(2, SPLIT)


@pytest.mark.parametrize("images", [3, 7, 50, 601])
@pytest.mark.parametrize("split", [SPLIT, (0.4, 0.3, 0.3), (0.05, 0.05, 0.9), (1 / 3,) * 3])
def test_split_sizes_add_up_and_are_within_one_of_the_shares(images, split):
    sizes = split_sizes(images, split)
    assert sum(sizes) == images
    assert min(sizes) >= 1
    if images * min(split) >= 1:
        pairs = zip(sizes, split, strict=True)
        assert all(abs(size - images * fraction) < 1 for size, fraction in pairs)


@pytest.mark.parametrize("split", [(0.7, 0.2, 0.2), (1, 0, 0), (1.2, -0.1, -0.1), (np.nan, 1, 0)])
def test_a_split_that_is_none_is_refused(split):
    with pytest.raises(UserError, match=r"must be above 0 and sum to 1, .* try --split 0.7"):
        check_split(split)
    check_split((0.7, 0.2, 0.1))  # their float sum is not exactly 1
