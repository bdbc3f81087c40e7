"""Figures and tables show values that may be missing or infinite, and any name as it is."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from matplotlib import mathtext
from matplotlib.figure import Figure
from matplotlib.text import Text

from common.reporting import plotting, problem2, problem3, tables
from common.reporting.results import ROOT

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
    "overlays": ["true: rose", "tulip (all-zero map)", "share of the map's largest value"],
    "doctor": ["f after the sums, step 2", "fp16", "conv1"],
    "exponents": ["ReLU throughout", "gammas start at 1", "p = 2"],
}


@pytest.fixture
def texts(monkeypatch):
    """The texts of all figures drawn, lines joined; reading one as mathematics fails the test."""
    found, save = [], Figure.savefig

    def keep(figure, path, **options):
        save(figure, path, **{**options, "dpi": 50})  # quicker than 200
        made = figure.findobj(Text)
        found.extend(" ".join(text.get_text().split("\n")) for text in made)

    monkeypatch.setattr(Figure, "savefig", keep)
    monkeypatch.setattr(mathtext.MathTextParser, "parse", lambda *_: pytest.fail("mathematics"))
    return found


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_what_it_shows_without_mathematics(name, tmp_path, texts):
    FIGURES[name](tmp_path / "figure.png")
    for wanted in TEXTS[name]:
        assert any(wanted in text for text in texts), wanted
    assert not any("$" in text or "mathdefault" in text for text in texts)


def test_networks_have_names_that_a_reader_knows():
    assert plotting.shown_name("wide_1.1_from_narrow") == "1.1 times as wide, from the narrow one"
    assert plotting.shown_name("relu5_3") == "relu5_3"


# Users' names of files, class folders and data folders, and how figures show them.
SHOWN = {
    "Ba$$in $5_vs_$6.png": "Ba$$in $5_vs_$6.png",
    "$x_{1$": "$x_{1$",
    "US$10 and US$20": "US$10 and US$20",
    "猫虎 1": "<U+732B U+864E> 1",
    "Blüte.png": "Blüte.png",
    "two\nlines": r"two\nlines",
    "\x1b[31mred": r"\x1b[31mred",
    "byte\udcff": r"byte\udcff",
    "\u202egpj.exe": r"\u202egpj.exe",
    "_under": "_under",
}


def draw_everywhere(name, path):
    """Draw the name in every place of a figure that may show a user's name."""
    problem2.draw_resolutions(path, title=name, sizes={(4, 3): 1})
    problem2.draw_class_counts(path, title=name, counts={"train": np.array([2, 1])})
    heat = plotting.HeatMap(MAP, "0-255")
    plotting.image_grid(path, "grid", [name, "header"], {name: [PICTURE, heat]})
    problem2.draw_overlays(path, "overlays", "", [[problem2.Overlay(PICTURE, MAP, name)]])
    plotting.dots(path, "dots", "", "loss", [name], {"loss": [(1, 1, 1)]}, 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SHOWN)
def test_a_figure_shows_a_name_as_it_is(name, tmp_path, texts):
    draw_everywhere(name, tmp_path / "figure.png")
    shown = [text for text in texts if SHOWN[name] in text]
    # Two titles, a header, a row, a caption and a dot.
    assert len(shown) >= 6
    assert name == SHOWN[name] or not any(name in text for text in texts)


def test_no_setting_of_a_notebook_or_a_user_matters(tmp_path):
    """Use a backend that is not installed, no folder for a cache, and a matplotlibrc with TeX."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: nowhere\naxes.grid: odd\n")
    code = (
        "import os\nimport numpy as np\nfrom pathlib import Path\n"
        "from common.reporting import problem3\n"
        "problem3.draw_functions(Path('f.png'), np.arange(3), {'$f': (np.ones(3), np.ones(3))})\n"
        "print(os.environ['MPLBACKEND'])"
    )
    backend = "module://matplotlib_inline.backend_inline"
    settings = {"MPLBACKEND": backend, "MPLCONFIGDIR": "/dev/null/x", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{backend}\n", "")
    assert (tmp_path / "f.png").stat().st_size > 10_000


# ---------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("name", [name for name in SHOWN if "猫" not in name])
def test_a_table_shows_a_name_as_it_is_in_one_line(name):
    record = {"name": name, "brace": "{0}"}
    assert tables.cell("{name} {brace}", record) == f"{SHOWN[name]} {{0}}"
    lines = tables.table("Caption.", {"photo": "{name}", "n": "1"}, [record]).splitlines()
    assert len(lines) == 4
    assert lines[3].split("  ")[0] == SHOWN[name]


def test_a_caption_shows_names_in_its_lines():
    name, seen = "two\nlines\x1b[0m", r"two\nlines\x1b[0m"
    splits = {"train": {"images": 1, "classes": 1, "resolutions": 1, "images_per_class": [1, 1]}}
    splits["train"]["top_resolutions"] = [[4, 3, 1]]
    for text in problem2.split_tables(name, splits).values():
        assert text.startswith(seen)
    catalogue = dict.fromkeys(("classes", "images_per_class", "total", "train", "val", "test"), 1)
    text = problem3.catalogue_table({**catalogue, "quarantined": []}, name)
    assert text.startswith(f"Drawn from {seen}, counted")
