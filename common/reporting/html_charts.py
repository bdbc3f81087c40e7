"""The interactive figures of the report page, as plain values that its script draws.

A chart has "title", "xlabel", "ylabel", "x" and "series". A series has "label" and "values", and
may have "low" and "high" (its interval), "dash" and "hidden". A chart may also have "names" (tick
labels of x), "log" (the logarithmic axes, "y" or "xy"), "top" (the upper end of y) and "frames":
[{"name", "values"}], the values of all series at each position of a slider.
"""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean

from common.reporting.plotting import CURVES, shown_name

NOT_FINITE = 1e39  # the doctor's chart draws other values here, beyond fp32
DOSES = {"shift": ("shift_px", "shift in px"), "noise": ("sigma", "sigma of the noise, of 255")}
WEIGHTS = {"weights": "VGG-16's weights", "random_weights": "random weights, a control"}


def is_runs(value) -> bool:
    """Whether a value is the list of a training's runs, one per seed, each with its history."""
    return isinstance(value, list) and any(isinstance(v, dict) and "history" in v for v in value)


def trainings(value, name: str = "efficientnet_v2_s") -> Iterator[tuple[str, list[dict]]]:
    """Every training in a result: its name, and its runs, one per seed."""
    if isinstance(value, Mapping):
        if is_runs(runs := value.get("runs")):
            yield name, runs
        for key, inner in value.items():
            yield from trainings(inner, key)


def curves(result: Mapping) -> list[dict]:
    """Charts of loss and top-1 over the epochs: means over seeds, train dashed, val with range."""
    found = [(name, [run["history"] for run in runs]) for name, runs in trainings(result)]
    found = [(name, histories) for name, histories in found if any(histories)]
    return [_curve(key, label, found) for key, label in CURVES.items()] if found else []


def _curve(key: str, label: str, found: list) -> dict:
    series, train_most = [], []
    x = sorted({row["epoch"] for _, runs in found for rows in runs for row in rows})
    for name, runs in found:
        rows = [row for history in runs for row in history]
        for split in ("val", "train"):
            epochs = [[row[f"{split}_{key}"] for row in rows if row["epoch"] == at] for at in x]
            epochs = [[value for value in values if value is not None] for values in epochs]
            line = {"label": f"{shown_name(name)}, {split}"}
            line["values"] = [fmean(values) if values else None for values in epochs]
            if split == "train":
                line["dash"] = True
                train_most += [value for value in line["values"] if value is not None]
            elif len(runs) > 1:
                line["low"] = [min(values, default=None) for values in epochs]
                line["high"] = [max(values, default=None) for values in epochs]
            series.append(line)
    title = f"{label} over the epochs, train dashed"
    chart = {"title": title, "xlabel": "epoch", "ylabel": label, "x": x, "series": series}
    # The scale follows train: one odd picture can make the val loss arbitrarily large.
    return chart | ({"top": 1.3 * max(train_most)} if key == "loss" and train_most else {})


def dose_response(result: Mapping) -> list[dict]:
    """Log-log charts of calibrated losses over shift and noise, for each kind of weights."""
    doses, charts = result.get("curves") or {}, []
    for weights, kind in WEIGHTS.items():
        for treatment, (key, label) in DOSES.items() if weights in doses else ():
            series = [
                {"label": shown_loss(loss), "values": curve[treatment]["relative"][1:]}
                | {end: curve[treatment][end][1:] for end in ("low", "high")}
                | {"dash": loss in ("l1", "l2"), "hidden": loss.startswith("mae_")}
                for loss, curve in doses[weights].items()
            ]
            title = f"Calibrated loss over the {treatment}: {kind}"
            # In results of earlier versions both kinds of weights share the same doses.
            x = doses.get("random_" * (weights == "random_weights") + key, doses[key])[1:]
            chart = {"title": title, "xlabel": label, "ylabel": "1: another picture"}
            charts.append(chart | {"x": x, "series": series, "log": "xy"})
    return charts


def shown_loss(loss: str) -> str:
    """The name of a loss in figures, except that l1 and l2 get different names."""
    return {"l1": "pixels, l1", "l2": "pixels, l2"}.get(loss, shown_name(loss))


def doctor(result: Mapping, folder: Path) -> list[dict]:
    """A chart of the largest output by module: the forecast, then each step that was watched.

    It shows networks that share their modules; `folder` holds steps as 3.4_doctor_NETWORK.csv.
    """
    forecast = result.get("forecast") or {}
    if not forecast:
        return []
    alike = max(forecast, key=lambda name: ("sum" in name, len(forecast[name]["blocks"])))
    modules = list(forecast[alike]["blocks"])
    peaks = {
        name: {0: {module: _peak(row["peak"]) for module, row in network["blocks"].items()}}
        for name, network in forecast.items()
        if list(network["blocks"]) == modules
    }
    for path in sorted(folder.glob("3.4_doctor_*.csv")):
        steps = peaks.setdefault(path.stem.removeprefix("3.4_doctor_"), {})
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["direction"] == "output" and row["module"] in modules:
                    value = None if row["non_finite"] != "0" else float(row["peak"])
                    steps.setdefault(int(row["step"]), {})[row["module"]] = _peak(value)
    frames = [
        {
            "name": f"step {step}" if step else "forecast, before the first step",
            "values": [[by_step.get(step, {}).get(module) for module in modules]
                       for by_step in peaks.values()],
        }
        for step in sorted({step for steps in peaks.values() for step in steps})
    ]  # fmt: skip
    series = [
        {"label": shown_name(name), "values": values}
        for name, values in zip(peaks, frames[0]["values"], strict=True)
    ]
    title = "Largest output by module (topmost: not finite)"
    axes = {"xlabel": "module", "ylabel": "largest |output|", "x": list(range(len(modules)))}
    chart = {"title": title, **axes, "names": modules, "series": series, "frames": frames}
    return [chart | {"log": "y", "top": NOT_FINITE}]


def _peak(value: float | None) -> float:
    """A peak for a logarithmic axis: NOT_FINITE if it is not finite, otherwise at least 1e-3."""
    return NOT_FINITE if value is None else max(value, 1e-3)
