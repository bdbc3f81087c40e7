import pytest
from PIL import Image

from common.data.sets import FileSet
from tests.conftest import picture


@pytest.fixture
def source(tmp_path):
    """Seven PNG files of three classes, of varying size."""
    folder = tmp_path / "originals"
    folder.mkdir()
    files = [folder / f"{seed}.png" for seed in range(7)]
    for seed, path in enumerate(files):
        Image.fromarray(picture(seed, 40 + seed, 33 + 2 * seed)).save(path)
    return FileSet("toys train", files, [0, 1, 2, 0, 1, 2, 0], ["rose", "lily", "iris"])
