"""Figures of values that may be missing, zero or infinite, looked at by their texts."""

from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from common.reporting import plotting, problem2, problem3

PICTURE = np.full((40, 60, 3), 128, np.uint8)
MAP = np.linspace(0, 2, 2400).reshape(40, 60)
EPOCHS = [
    {"epoch": epoch, "train_loss": 2, "val_loss": 1.5, "train_top1": 20, "val_top1": 30}
    for epoch in (1, 2)
]
EPOCHS.append({**EPOCHS[0], "epoch": 3, "val_loss": 1e12})
CURVE = ([0.1, 0.2], [0.05, np.nan], [0.2, np.nan])
FIGURES = {
    "dots": partial(
        plotting.dots,
        title="Worth",
        settings="six photos",
        xlabel="sigma",
        names=["l2", "lpips"],
        series={
            "weights": [(2, 1, 3), (np.nan,) * 3],
            "random": [(5, np.nan, 6), (4, np.nextafter(4, 5), 5)],
        },
        digits=1,
    ),
    "dose_response": partial(
        plotting.dose_response,
        title="Doses",
        settings="six photos",
        ylabel="loss",
        panels=[plotting.Panel("noise", "sigma", (1, 100), {"l1": CURVE, "relu1_2": CURVE})] * 2,
        ylim=(0.01, 1),
    ),
    "training_curves": partial(
        plotting.training_curves, title="flowers", histories={"resnet34": [EPOCHS, EPOCHS]}
    ),
    "overlays": partial(
        problem2.draw_overlays,
        title="Grad-CAM",
        settings="drawn flowers",
        rows=[
            [problem2.Overlay(PICTURE, None, "true: rose")],
            [problem2.Overlay(PICTURE, MAP, "rose"), problem2.Overlay(PICTURE, 0 * MAP, "tulip")],
        ],
    ),
    "doctor": partial(
        problem3.draw_doctor,
        curves={"resnet36_sum": {1: [2.0, np.inf], 2: [np.inf, np.inf]}},
        blocks=["conv1", "fc"],
        ranges={"fp16": 65504.0, "bf16": 3e38},
        tag="64 px",
    ),
    "exponents": partial(
        problem3.draw_exponents,
        tag="64 px",
        rows=[
            {"power": 2, "gamma": 1, "kurtosis": 23.0, "test_top1": 43.0, "test_top1_std": None},
            {"power": None, "gamma": 1, "kurtosis": None, "test_top1": 59.0, "test_top1_std": 1.0},
        ],
    ),
}
TEXTS = {
    "dots": ["2.0", "pixels", "LPIPS", "sigma", "random", "six photos"],
    "dose_response": ["noise", "sigma", "100", "relu1_2", "six photos"],
    "training_curves": ["top-1 in %: val solid, train dashed", "ResNet-34"],
    "overlays": ["true: rose", "tulip\n(all-zero map)", "share of the map's largest value"],
    "doctor": ["f after the sums, step 2", "fp16", "conv1"],
    "exponents": ["ReLU throughout", "gammas start at 1", "p = 2"],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_what_it_shows_without_mathematics(name, tmp_path, monkeypatch):
    texts, save = [], Figure.savefig

    def keep(figure, path, **options):
        save(figure, path, **options)
        texts.extend(text.get_text() for text in figure.findobj(Text))

    monkeypatch.setattr(Figure, "savefig", keep)
    FIGURES[name](tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as drawn:
        assert drawn.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    for wanted in TEXTS[name]:
        assert any(wanted in text for text in texts), wanted
    assert not any("$" in text or "mathdefault" in text for text in texts)


def test_networks_have_names_that_a_reader_knows():
    assert plotting.shown_name("wide_1.1_from_narrow") == "1.1 times as wide, from the narrow one"
    assert plotting.shown_name("relu5_3") == "relu5_3"
