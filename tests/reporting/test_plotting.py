"""Every kind of figure, drawn once and looked at by its axes' texts."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from common.reporting import plotting

PICTURE = np.full((40, 60, 3), 128, np.uint8)
MAP = np.linspace(0, 2, 2400).reshape(40, 60)
EPOCHS = [
    {"epoch": epoch, "train_loss": 2, "val_loss": 1.5, "train_top1": 20, "val_top1": 30}
    for epoch in (1, 2)
]
CURVE = ([0.1, 0.2], [0.05, np.nan], [0.2, np.nan])
FIGURES = {
    "image_grid": partial(
        plotting.image_grid,
        title="Translation",
        headers=["a header of many words, which is wrapped", "difference"],
        rows={"a.png": [PICTURE, plotting.HeatMap(MAP, "0-255")]},
    ),
    "bars": partial(
        plotting.bars,
        title="Losses",
        ylabel="loss",
        names=["l1", "l2"],
        heights=[0.125, 2],
        lows=[0.1, np.nan],
        highs=[0.2, np.nan],
    ),
    "dose_response": partial(
        plotting.dose_response,
        title="Doses",
        ylabel="loss",
        panels=[plotting.Panel("noise", "sigma", (1, 100), {"l1": CURVE, "relu1_2": CURVE})] * 2,
        ylim=(0.01, 1),
    ),
    "resolutions": partial(
        plotting.resolutions, title="train", sizes={(500, 667): 1000, (640, 480): 2}
    ),
    "class_counts": partial(
        plotting.class_counts, title="flowers", counts={"train": np.array([2, 1000])}
    ),
    "training_curves": partial(
        plotting.training_curves, title="flowers", histories={"resnet34": [EPOCHS, EPOCHS]}
    ),
    "overlays": partial(
        plotting.overlays,
        title="Grad-CAM",
        rows=[
            [plotting.Overlay(PICTURE, None, "true: rose")],
            [plotting.Overlay(PICTURE, MAP, "rose"), plotting.Overlay(PICTURE, 0 * MAP, "tulip")],
        ],
    ),
    "functions": partial(
        plotting.functions, x=np.arange(3), curves={"f": (np.arange(3), np.ones(3))}
    ),
    "peaks": partial(
        plotting.peaks,
        title="Peaks",
        modules=["conv1", "fc"],
        curves={"resnet36_sum": {1: [2.0, np.inf], 2: [np.inf, np.inf]}},
        limits={"fp16": 65504.0},
    ),
}
TEXTS = {
    "image_grid": ["Translation", "a header of many\nwords, which is\nwrapped", "a.png", "0-255"],
    "bars": ["0.125", "2.000", "l1", "loss"],
    "dose_response": ["noise", "sigma", "100", "relu1_2"],
    "resolutions": ["train: 1,002 images, 2 resolutions", "500x667: 1,000", "width in px"],
    "class_counts": ["train: 1,002 images", "class"],
    "training_curves": ["flowers; mean and range of 2 seeds", "top-1 in %", "resnet34"],
    "overlays": ["true: rose", "tulip\n(all-zero map)", "share of the map's largest value"],
    "functions": ["derivative", "f"],
    "peaks": ["resnet36_sum, step 2", "fp16", "conv1"],
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_what_it_shows(name, tmp_path, monkeypatch):
    texts, save = [], Figure.savefig

    def keep(figure, path, **options):
        save(figure, path, **options)
        texts.extend(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))

    monkeypatch.setattr(Figure, "savefig", keep)
    FIGURES[name](tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as drawn:
        assert drawn.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    assert set(TEXTS[name]) <= set(texts)


def test_drawing_changes_no_style_of_the_caller(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    FIGURES["functions"](tmp_path / "figure.png")
    assert dict(matplotlib.rcParams) == before


def test_nothing_is_loaded_before_something_is_drawn_or_computed():
    code = (
        "import sys\n"
        "from common.reporting import page, plotting, results, statistics, tables\n"
        "print([name for name in ('matplotlib', 'scipy', 'skimage') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
