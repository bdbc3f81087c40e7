"""Bad pictures: each decoded right, or refused in a line; and whole folders of them."""

import os
import random

import numpy as np
import pytest

from common.data.decoding import load_image
from common.errors import UserError
from tests.faults import specimens, tiny
from tests.faults.harness import CALLS, end, start

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore::UserWarning")]
ALL = list(specimens.all_specimens(False))
# Of Problem 1 the photos, of Problem 3 the class folders.
FOLDERS = {"1.1": ("photos",), "3.1": ("classes/ants", "classes/bees", "classes/US$5_note_$")}


@pytest.mark.parametrize("fault", dict.fromkeys(fault for fault, _, _ in ALL))
def test_a_picture_is_decoded_right_or_refused(tmp_path, fault):
    rng = random.Random(fault)
    for make, how in [(make, how) for name, make, how in ALL if name == fault]:
        specimen = make(rng, *how)
        path = tmp_path / os.fsdecode(specimen.name)
        path.write_bytes(specimen.content)
        try:
            pixels = load_image(path)
        except UserError:
            pixels = None
        if pixels is None:
            assert not specimen.must_decode, how
            continue
        assert not specimen.must_refuse, how
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] == (3,)
        assert specimen.right is None or is_right(pixels, specimen), how


def is_right(pixels: np.ndarray, specimen: specimens.Specimen) -> bool:
    """Whether the pixels are those of the picture, turned in one of the ways that are allowed."""
    ways = specimens.TURNED.values() if specimen.turned else [specimens.TURNED[1]]
    rights = [turn(specimen.right) for turn in ways]
    return any(
        right.shape == pixels.shape
        and np.abs(right.astype(int) - pixels).max() <= specimen.tolerance
        for right in rights
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("part", FOLDERS)
def test_of_a_folder_the_bad_pictures_are_left_out(tmp_path, part, seed):
    rng = random.Random(seed)
    tiny.write_photos(tmp_path / "photos")
    tiny.write_classes(tmp_path / "classes", ("ants", "bees", "US$5_note_$"), images=8)
    some = [(make, how) for fault, make, how in ALL if fault != "strip"]  # too low to compare
    for place in FOLDERS[part]:
        for number, (make, how) in enumerate(rng.sample(some, 9)):
            specimen = make(rng, *how)
            name = rng.choice((specimen.name, rng.choice(specimens.NAMES)))
            stem, ending = os.path.splitext(name)
            name = os.fsdecode(b"%s%d%s" % (stem[:100], number, ending))
            (tmp_path / place / name).write_bytes(specimen.content)
    flags = ("--data", "classes", "--per-class", 6, "--image-size", 32, "--out", "out")
    call = CALLS["1.1"] if part == "1.1" else ("problem3_resnet36", "3.1", *flags)
    code, said = end(start(call, tmp_path))
    assert code == 0, said
    assert said.count("\n") <= 5
