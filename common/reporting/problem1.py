"""How Problem 1 is told: its tables and figures, made of what results.json holds.

A `tag` says which weights and photos a result is of, such as "ImageNet weights, 6 photo(s)"; `tags`
are those of a result, "weights", and of its control where there is one, "random_weights".
"""

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np

from common.job import printable
from common.reporting import plotting
from common.reporting.ratios import distortions_figure, is_absolute, squared
from common.reporting.tables import table

ROWS = 24  # of a table with a row a photo, at most
CALIBRATED = {"raw": "{raw:.4g}", "relative": "{relative:.4f}"}
CALIBRATED["95 % interval"] = "{low:.4f} - {high:.4f}"
RANDOM = {"random": "{random[relative]:.4f}", "its range": "{random[low]:.4f} - {random[high]:.4f}"}
DOSES = {
    "shift": ("translation", "shift in px"),
    "noise": ("Gaussian noise", "sigma in 0-255 units"),
}


def shift_table(result: Mapping) -> str:
    """1.1's pixel losses, a row a photo."""
    images, broken = result["images"], result["wrapped_breaks_inequality"]
    caption = (
        f"Shift by {result['shift_px']:g} px to the left, edge {result['edge']}; 0-255 units, PSNR"
        " in dB.\nWrapped: the report's error, uint8 arithmetic. l2 >= l1^2 holds for all numbers;"
        f" the\nwrapped pair breaks it in {len(broken)} of {len(images)} photos."
    )
    columns = {"photo": "{photo}", "size": "{size[0]}x{size[1]}"}
    columns |= {"l1": "{l1:.2f}", "l2": "{l2:.2f}", "PSNR": "{psnr:.2f}", "SSIM": "{ssim:.4f}"}
    columns |= {"l1 wrapped": "{l1_uint8:.2f}", "l2 wrapped": "{l2_uint8:.2f}"}
    rows = [{"photo": photo, **row} for photo, row in images.items()]
    if more := rows[ROWS:]:
        caption += f"\nThe first {ROWS} photos; {len(more):,} more are in results.json."
    return table(caption, columns, rows[:ROWS])


# ------------------------------------------------------------------------------------ 1.2


def feature_reports(
    result: Mapping, shift_px: float, edge: str, tags: Mapping[str, str]
) -> tuple[dict, dict]:
    """1.2's tables and figures, by file name."""
    weights = tags["weights"].rpartition(", ")[0]  # the photos are fewer
    makers = {"borders": _borders_table, "half_pixel": _half_pixel_table}
    makers["report_scale"] = _scale_table
    tables = {"1.2_feature_losses.txt": _feature_table(result, shift_px, edge, both(tags))}
    tables |= {
        f"1.2_{key}.txt": make(result[key], weights) for key, make in makers.items() if result[key]
    }
    return tables, {"1.2_feature_losses.png": feature_figure(result, shift_px, both(tags))}


def both(tags: Mapping[str, str]) -> str:
    """The tags of a result and of its control, in one."""
    return "; control: ".join(tags.values())


def _feature_table(result: Mapping, shift_px: float, edge: str, tag: str) -> str:
    caption = (
        f"Shift by {shift_px:g} px, edge {edge}, {tag}.\n"
        "Features: MSE, and MAE as mae_. raw: mean loss. relative: 0 = the same, 1 = another\n"
        "picture, with its 95 % bootstrap interval over photos. random: with random weights,\n"
        f"the lowest and the highest draw.\n{_other_pictures(result)}"
    )
    layers = {loss: _of_tap(result["layers"], loss) for loss in result["losses"]}
    columns = {"loss": "{loss}", "layer": "{layer}"} | CALIBRATED
    return _losses_table(caption, columns, result, layer=layers)


def _losses_table(caption: str, columns: Mapping, result: Mapping, **beside: Mapping) -> str:
    """A row a loss of a result, beside those of its control and what else is known of each."""
    if random := result["random_weights"]:
        columns, beside = columns | RANDOM, {**beside, "random": random}
    rows = [
        {"loss": loss, **row} | {key: known.get(loss, {}) for key, known in beside.items()}
        for loss, row in result["losses"].items()
    ]
    return table(caption, columns, rows)


def _of_tap(known: Mapping, loss: str):
    """What is known of a loss's layer; nothing of a loss of pixels."""
    return known.get(loss.removeprefix("mae_"), "")


def feature_figure(result: Mapping, shift_px: float, tag: str) -> partial:
    """1.2's calibrated squared losses as dots."""
    return _dots(
        {"weights": result["losses"], "random_weights": result["random_weights"]},
        key="relative",
        title=f"What a shift of {shift_px:g} px to the left costs each loss",
        settings=f"Squared differences, lines: 95 % intervals. {tag}",
        xlabel="calibrated loss (0 = the same, 1 = another picture)",
        digits=3,
    )


def _dots(losses: Mapping[str, Mapping | None], key: str, **about) -> partial:
    """A dot and an interval for each squared loss, of trained weights and of the control."""
    labels = {"weights": "trained weights", "random_weights": "random weights, range over draws"}
    series = {
        labels[kind]: [
            _numbers(row[k] for k in (key, "low", "high")) for row in squared(rows).values()
        ]
        for kind, rows in losses.items()
        if rows
    }
    return partial(plotting.dots, names=list(squared(losses["weights"])), series=series, **about)


def _borders_table(found: Mapping, tag: str) -> str:
    caption = (
        f"Calibrated losses of all cells, and of those alone that see no zero of the padding:\n"
        f"{len(found['pictures'])} photos, central {found['crop_px']} px, {tag}."
    )
    columns = {"loss": "{loss}", "valid cells": "{cells}"}
    for pair in ("shift", "noise"):
        columns[f"{pair}, all"] = f"{{{pair}[all]:.4f}}"
        columns[f"{pair}, valid"] = f"{{{pair}[valid]:.4f}}"
    cells = {tap: f"{valid:,} of {all_:,}" for tap, (all_, valid) in found["cells"].items()}
    losses = found["losses"].items()
    rows = [{"loss": loss, "cells": _of_tap(cells, loss), **row} for loss, row in losses]
    return table(caption, columns, rows)


def _half_pixel_table(found: Mapping, tag: str) -> str:
    caption = (
        "Half a pixel, calibrated losses. exact: a picture of twice the size moves by a whole\n"
        "pixel, then each 2x2 pixels are averaged. Fourier: the small picture is interpolated.\n"
        f"whole: one pixel. {len(found['pictures'])} photos, {found['side_px']} px, {tag}."
    )
    columns = {"loss": "{loss}", "half, exact": "{exact:.4f}", "half, Fourier": "{fourier:.4f}"}
    rows = [{"loss": loss, **row} for loss, row in found["losses"].items()]
    return table(caption, columns | {"whole": "{whole:.4f}"}, rows)


def _scale_table(found: Mapping, tag: str) -> str:
    report = found["report"]
    caption = (
        f"The report's raw losses, and ours by the input's scale: {len(found['pictures'])} photos,"
        f"\nshifted, then scaled to {found['side_px']} px; noise: layer 30. factor: how far off the"
        f" worst\nof the five is. {tag}."
    )
    columns = {"input": "{scale}", "error": "{error}"}
    columns |= {key: f"{{{key}:.4g}}" for key in report} | {"factor": "{factor:.3g}"}
    rows = [{"scale": "the report", "error": "?", **report}, *found["rows"]]
    return table(caption, columns, rows)


# ------------------------------------------------------------------------------------ 1.3


def noise_table(result: Mapping, tag: str) -> str:
    """1.3's losses under noise, a row a loss, of the photo and of its shifted copy."""
    clipped = result["clipped_share"]
    wrapped = "; ".join(
        f"{way}: l1 {row['l1_uint8']:.1f}, l2 {row['l2_uint8']:.1f}"
        for way, row in result["wrapped"].items()
    )
    caption = (
        f"Gaussian noise, sigma {result['sigma']:g} (0-255 units), {tag}; clipped:\n"
        f"{clipped['original']:.1%} of the original's values, {clipped['translated']:.1%} of the"
        " translated one's.\nOriginal against its noisy copy; (tr.): translated against its noisy"
        f" copy.\n8-bit arithmetic that wraps (the report: l1 176.0, l2 102.5), by how noise is"
        f" added:\n{wrapped}.\n{_other_pictures(result)}"
    )
    columns = {"loss": "{loss}", **CALIBRATED}
    columns |= {"raw (tr.)": "{tr[raw]:.4g}", "relative (tr.)": "{tr[relative]:.4f}"}
    columns |= {"95 % (tr.)": "{tr[low]:.4f} - {tr[high]:.4f}"}
    return _losses_table(caption, columns, result, tr=result["losses_translated"])


def dose_reports(result: Mapping, tags: Mapping[str, str]) -> tuple[dict, dict]:
    """1.3's tables and figures of the dose-response, by file name."""
    curves, side_px = result["curves"], result["curves"]["crop_px"]
    tables, figures, of_weights = {}, {}, tags["weights"]
    for key, tag in tags.items():
        prefix = "random_" if key == "random_weights" else ""
        doses = {"shift": curves[f"{prefix}shift_px"], "noise": curves[f"{prefix}sigma"]}
        draws = f"{result['noise_seeds']} noise draw(s)"
        title = f"{tag}: central {side_px}x{side_px} px squares, {draws}"
        name = "1.3_dose_response" + ("_random" if prefix else "")
        tables[f"{name}.txt"] = _doses_table(curves[key], doses, title)
        figures[f"{name}.png"] = partial(
            plotting.dose_response,
            title="What a shift and noise cost each loss, by their size",
            settings=f"Squared differences. {title}",
            ylabel="calibrated loss (0 = the same, 1 = another picture)",
            panels=[_panel(curves[key], kind, doses[kind]) for kind in DOSES],
            ylim=_limits([curves[key] for key in tags]),
        )
    tables["1.3_shift_equivalent_noise.txt"] = _equivalents_table(result, of_weights)
    tables["1.3_order_turns.txt"] = _turns_table(result, of_weights)
    tables["1.3_slopes.txt"] = _slopes_table(result["slopes"], of_weights)
    tables["1.3_distortions.txt"] = _distortions_table(result["distortions"], both(tags))
    settings = f"Central {side_px}x{side_px} px squares. {both(tags)}"
    figures["1.3_shift_worth.png"] = _worth_figure(
        result, f"Squared differences, lines: 95 % intervals. {settings}"
    )
    figures["1.3_distortions.png"] = distortions_figure(result, settings)
    return tables, figures


def _doses_table(losses: Mapping, doses: Mapping[str, list[float]], title: str) -> str:
    """Losses over the shift, and over the noise below."""
    text = f"Calibrated losses, {title}\n"
    for kind, (_, unit) in DOSES.items():
        columns = {f"{dose:g}": f"{{relative[{i}]:.4f}}" for i, dose in enumerate(doses[kind])}
        rows = [{"loss": loss, **row[kind]} for loss, row in losses.items()]
        text += table("", {unit: "{loss}", **columns}, rows)
    return text


def _panel(losses: Mapping, kind: str, doses: list[float]) -> plotting.Panel:
    """Squared losses over doses but 0, whose loss of 0 a logarithmic axis can't show."""
    lines = {
        loss: tuple(_numbers(row[kind][key][1:]) for key in ("relative", "low", "high"))
        for loss, row in squared(losses).items()
    }
    return plotting.Panel(*DOSES[kind], doses[1:], lines)


def _limits(curves: list[Mapping]) -> tuple[float, float]:
    """Ends of the vertical axis: all doses but 0 fit, and a control has the same scale."""
    shown = [curve for rows in curves for row in squared(rows).values() for curve in row.values()]
    lowest = min(min(curve["relative"][1:]) for curve in shown)
    highest = max(np.nanmax(_numbers(curve["relative"] + curve["high"])) for curve in shown)
    return 0.7 * lowest, 1.4 * highest


def _turns_table(result: Mapping, tag: str) -> str:
    caption = (
        "Calibrated losses a and b under noise, two of a kind: from this sigma (0-255 units) on a\n"
        'answers more than b, just below it less; "-": a answers more at all sigmas. Of an end,\n'
        f'0.0 is below the smallest sigma, and "none" beyond {max(result["curves"]["sigma"])}.'
        f" {tag}."
    )
    columns = {"a": "{a}", "b": "{b}", "sigma": "{sigma:.1f}"}
    columns["95 % interval"] = "{at[low]} - {at[high]}"
    return table(caption, columns, [{**row, "at": _reached(row)} for row in result["order_turns"]])


def _slopes_table(slopes: Mapping, tag: str) -> str:
    caption = (
        "How fast calibrated losses grow with noise: local slopes in log-log between two doses,\n"
        "at their middle (sigma in 0-255 units). 2: a square, or 1: an absolute difference, of\n"
        f"what grows like the noise; near 0: saturated. {tag}."
    )
    columns = {f"{sigma:.3g}": f"{{slope[{i}]:.2f}}" for i, sigma in enumerate(slopes["sigma"])}
    rows = [{"loss": loss, **row} for loss, row in slopes.items() if loss != "sigma"]
    return table(caption, {"sigma": "{loss}", **columns}, rows)


def _distortions_table(distortions: Mapping, tag: str) -> str:
    trained, random = distortions["weights"], distortions.get("random_weights", {})
    names = next(iter(trained.values()))["ratios"]
    caption = (
        "Distortions as strong as cost the pixels' l2 of a one-pixel shift: loss over the shift's\n"
        "loss, geometric means over photos. Above 1: the loss forgives the shift and sees the\n"
        "distortion. l2 is 1, and so is PSNR, a function of it. Squares, then absolute\n"
        f"differences, each the best first. {tag}."
    )
    columns = {"loss": "{loss}"} | {name: f"{{ratios[{name}][mean]:.2f}}" for name in names}
    columns |= {"mean": "{mean:.2f}", "95 % interval": "{low:.2f} - {high:.2f}"}
    if random:
        columns["random"] = "{random[mean]:.2f}"
        columns["its range"] = "{random[low]:.2f} - {random[high]:.2f}"
    rows = [{"loss": loss, **row, "random": random.get(loss)} for loss, row in trained.items()]
    return table(caption, columns, sorted(rows, key=lambda row: is_absolute(row["loss"])))


def _worth_figure(result: Mapping, settings: str) -> partial:
    """1.3's finding as dots: the noise that costs each loss as much as a one-pixel shift."""
    equal = result["shift_equivalent_sigma_intervals"]
    sigmas = {loss: row["sigma"] for loss, row in squared(equal["weights"]).items()}
    title = "The noise that costs as much as a shift of one pixel"
    if known := {loss: sigma for loss, sigma in sigmas.items() if sigma is not None}:
        ends = min(known, key=known.get), max(known, key=known.get)
        first, last = (f"{known[loss]:.1f} in {plotting.shown_name(loss)}" for loss in ends)
        title += f": sigma {first}, {last}"
    xlabel = "sigma of the noise in 0-255 units (low: more sensitive to noise than to the shift)"
    about = {"title": title, "settings": settings, "xlabel": xlabel, "digits": 1}
    return _dots(equal, "sigma", **about)


def _equivalents_table(result: Mapping, tag: str) -> str:
    curves, equal = result["curves"], result["shift_equivalent_sigma_intervals"]
    side_px, at_1_px = curves["crop_px"], list(curves["shift_px"]).index(1)
    columns = {"loss": "{loss}", "relative at 1 px": "{relative:.4f}"}
    columns["equal sigma"] = "{weights[sigma]}"
    columns["95 % interval"] = "{weights[low]} - {weights[high]}"
    caption = (
        "The noise that costs as much as a one-pixel shift: sigma in 0-255 units,"
        f" {tag},\ntheir central {side_px}x{side_px} px."
        " A low sigma: a loss more sensitive to noise, by the"
        ' measure of its own answer\nto the shift. "none": not reached up to sigma'
        f" {max(curves['sigma'])}."
    )
    if "random_weights" in equal:
        columns["random"] = "{random_weights[sigma]}"
        columns["its range"] = "{random_weights[low]} - {random_weights[high]}"
        caption += " random: the same\nwith random weights, the lowest and the highest draw."
    rows = [
        {"loss": loss, "relative": row["shift"]["relative"][at_1_px]}
        | {key: _reached(sigmas[loss]) for key, sigmas in equal.items()}
        for loss, row in curves["weights"].items()
    ]
    return table(caption, columns, rows)


def _reached(row: Mapping[str, float | None]) -> dict[str, str | None]:
    """A row's sigma and interval as text, "none" where no dose reached it, None without interval.

    results.json stores both infinity and NaN as null.
    """
    values = {key: np.nan if row[key] is None else row[key] for key in ("sigma", "low", "high")}
    text = {key: f"{v:.1f}" if np.isfinite(v) else "none" for key, v in values.items()}
    return text if np.isfinite(values["low"]) else {**text, "low": None}


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    """Values of results.json, which stores NaN as null."""
    return np.array(list(values), float)


def _other_pictures(result: Mapping) -> str:
    """A caption's sentence on the pictures that losses were calibrated with."""
    names, resized = result["references"], result["references_resized"]
    if len(names) > ROWS:
        return f"Another picture: others of the {len(names):,} photos."
    named = ", ".join(f"{name} ({resized[name]})" if name in resized else name for name in names)
    scaled = ";\nthose with a size were scaled to the photo's" if resized else ""
    return f"Another picture: {printable(named)}{scaled}."
