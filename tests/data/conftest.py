import numpy as np
import pytest
from PIL import Image

from common.data import manifest
from common.data.sets import FileSet
from common.errors import UserError
from tests.conftest import picture


@pytest.fixture
def source(tmp_path):
    """Seven PNG files of different sizes, from three classes."""
    folder = tmp_path / "originals"
    folder.mkdir()
    files = [folder / f"{seed}.png" for seed in range(7)]
    for seed, path in enumerate(files):
        Image.fromarray(picture(seed, 40 + seed, 33 + 2 * seed)).save(path)
    return FileSet("toys train", files, [0, 1, 2, 0, 1, 2, 0], ["rose", "lily", "iris"])


SPLIT = (0.7, 0.15, 0.15)


def save(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 8 + seed % 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    """Four classes of 12 different PNG files, a 0.png to d 11.png; words.txt names two of them."""
    folder = tmp_path / "images"
    for number, class_id in enumerate("abcd"):
        (folder / class_id).mkdir(parents=True)
        for seed in range(12):
            save(folder / class_id / f"{class_id} {seed}.png", 100 * number + seed)
    (tmp_path / "words.txt").write_text("a\tant, emmet\nb\tbee\n")
    return folder


def draw(root, classes=3, per_class=8, split=SPLIT, seed=0, allow_fewer=False):
    return manifest.draw(root, classes, per_class, split, seed, allow_fewer)


def fails(match, root, **changes):
    with pytest.raises(UserError, match=match) as error:
        draw(root, **changes)
    assert "\n" not in str(error.value)
