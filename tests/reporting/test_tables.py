import math
from types import SimpleNamespace

import pytest

from common.reporting import tables
from common.reporting.statistics import over_seeds
from common.reporting.tables import training_report

RUN = {"seed": 0, "top1": 66.6667, "interval": {"low": 62.5, "high": None}, "shape": [64, 220]}


def test_a_table_has_a_row_a_record_under_its_caption():
    columns = {"network": "{name}", "top-1": "{top1:.2f}", "per class": "{low} - {high}"}
    records = [
        {"name": "resnet34", "top1": 66.6667, "low": 10, "high": 12},
        {"name": "resnet36", "top1": None, "low": 10, "high": 12},
    ]
    assert tables.table("Ten classes.", columns, records).splitlines() == [
        "Ten classes.",
        "network      top-1    per class",
        "---------  -------  -----------",
        "resnet34     66.67      10 - 12",
        "resnet36         -      10 - 12",
    ]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{top1:.1f} %", "66.7 %"),
        ("{interval[low]:.0f}", "62"),
        ("{shape[0]}x{shape[1]}", "64x220"),
        ("all", "all"),
        ("{interval[low]} - {interval[high]}", None),
        ("{top5:.1f}", None),
        ("{interval[middle]}", None),
        ("{shape[2]}", None),
    ],
)
def test_a_cell_is_filled_or_none(template, text):
    assert tables.cell(template, RUN) == text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_shown_as_its_null_in_results_json_is(value):
    assert tables.cell("{low:.1f}", {"low": value}) is None


# ---------------------------------------------------------------------------------------- trainings


def run_of(seed, test_top1, **changes):
    return {
        "seed": seed, "weights": "best.pt", "precision": "fp32", "best_epoch": 3, "val_top1": 60.0,
        "test_top1": test_top1, "test_top1_low": 20.0, "test_top1_high": 80.0, "test_top5": 100.0,
        "test_per_class": 41.5,
        "training_seconds": 12.4, "images_per_second": 345.67, "peak_memory_mib": 1.0,
        "history": [{"epoch": 1}],
    } | changes  # fmt: skip


def test_over_seeds_has_means_and_the_sample_standard_deviation():
    runs_of_two = [run_of(0, 40.0), run_of(1, 50.0, val_top1=70.0, training_seconds=13.6)]
    means = over_seeds(runs_of_two, 20)
    assert (means["val_top1"], means["test_top1"], means["training_seconds"]) == (65, 45, 13)
    assert means["test_top1_std"] == pytest.approx(50**0.5)
    assert means["test_top1_low"] < 45 < means["test_top1_high"]
    assert over_seeds(runs_of_two[:1], 20)["test_top1_std"] is None


SETUP = SimpleNamespace(
    args=SimpleNamespace(flip_test=False),
    recipe=SimpleNamespace(epochs=2, label_smoothing=0.1),
    classes=3,
    packed={"test": range(9)},
    tag_in=lambda precision: f"TINY, {precision}, last layer solved",
)


def test_the_report_has_a_row_a_run_and_one_over_the_seeds():
    networks = {"relu": [run_of(0, 40.0), run_of(1, 50.0)], "f": [run_of(0, 30.0)]}
    histogram = {"network": "histogram", "val_top1": 31.2, "test_top1": 30.0}
    texts, figures = training_report(SETUP, "9.9", networks, "init scratch", [histogram])
    lines = texts["9.9_training.txt"].splitlines()
    assert lines[0] == "TINY, fp32, last layer solved, init scratch, 2 epochs."
    assert lines[1].startswith("Top-1 in per cent, of the epoch that was best on val; test looked")
    assert lines[1].endswith("at once; chance 33.33 %.")
    cells = [line.replace(" +- ", "+-").replace(" - ", "-").split() for line in lines[5:]]
    assert cells == [
        ["histogram", "-", "-", "31.20", "30.00", "-", "-", "-", "-"],
        ["relu", "0", "3", "60.00", "40.00", "20.00-80.00", "41.50", "345.7", "12"],
        ["relu", "1", "3", "60.00", "50.00", "20.00-80.00", "41.50", "345.7", "12"],
        ["relu", "all", "-", "60.00", "45.00+-7.07", "-", "41.50", "-", "-"],
        ["f", "0", "3", "60.00", "30.00", "20.00-80.00", "41.50", "345.7", "12"],
    ]
    for header in tables.TRAINING:
        assert header in lines[3]
    (curves,) = figures.values()
    assert list(figures) == ["9.9_curves.png"]
    assert curves.keywords["title"] == (
        "TINY, fp32, last layer as trained, init scratch; labels smoothed by 0.1 in training alone"
    )
    assert curves.keywords["histories"] == {"relu": [[{"epoch": 1}]] * 2, "f": [[{"epoch": 1}]]}
