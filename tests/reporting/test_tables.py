import math

import pytest

from common.reporting import tables

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


def test_cells_stay_as_they_are():
    records = [{"name": "a", "n": "1e5"}, {"name": "b", "n": "079"}]
    assert tables.table("", {"": "{name}", "n": "{n}"}, records).splitlines()[3:] == [
        "a   1e5",
        "b   079",
    ]
