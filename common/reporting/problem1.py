"""The tables and figures of Problem 1, made from the values in results.json.

`tags["weights"]` names the weights and photos of a result, such as "ImageNet weights, 6 photo(s)".
`tags["random_weights"]`, if present, names those of its control.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from common.files import finite
from common.job import printable
from common.reporting import plotting
from common.reporting.tables import table

ROWS = 24  # at most, in a table with one row per photo
CALIBRATED = {"raw": "{raw:.4g}", "relative": "{relative:.4f}"}
CALIBRATED["95 % interval"] = "{low:.4f} - {high:.4f}"
DOSES = {
    "shift": ("translation", "shift in px"),
    "noise": ("Gaussian noise", "sigma in 0-255 units"),
}
OF_PIXELS = ("l1", "l2", "dssim")
KINDS = {"weights": "trained weights", "random_weights": "random weights"}
AXIS = "calibrated loss (0 = the same, 1 = another picture)"


def is_absolute(loss: str) -> bool:
    """Whether a loss, by its name, averages absolute differences; all others average squares."""
    return loss == "l1" or loss.startswith("mae_")


def squared(losses: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """The losses that are squared differences; these can be compared only with each other."""
    return {loss: row for loss, row in losses.items() if not is_absolute(loss)}


def losses_table(caption: str, columns: Mapping, losses: Mapping, head: str = "loss", **beside):
    """A table with one row per loss; `beside` adds {loss: value} under names used in `columns`."""
    if random := beside.get("random"):  # losses of pixels have no weights
        beside["random"] = {loss: row for loss, row in random.items() if loss not in OF_PIXELS}
    rows = [
        {"loss": loss, **row, **{name: known.get(loss) for name, known in beside.items()}}
        for loss, row in losses.items()
    ]
    return table(caption, {head: "{loss}", **columns}, rows)


def random_columns(random: Mapping | None, key: str, form: str = "") -> dict[str, str]:
    """The columns of the random-weights control, its mean and range; {} without a control."""
    ends = f"{{random[low]:{form}}} - {{random[high]:{form}}}"
    return {"random": f"{{random[{key}]:{form}}}", "its range": ends} if random else {}


def shift_table(result: Mapping) -> str:
    """1.1's table of pixel losses, one row per photo."""
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
    both = "; control: ".join(tags.values())
    caption = (
        f"Shift by {shift_px:g} px, edge {edge}, {both}.\nrelative: 0 = the same, 1 = another"
        " picture, with its interval over photos; mae_: absolute differences.\n"
    )
    losses, random = result["losses"], result["random_weights"] or {}
    columns = {"layer": "{layer}", **CALIBRATED, **random_columns(random, "relative", ".4f")}
    beside = {"layer": _of_taps(result["layers"], losses), "random": random}
    text = losses_table(caption + _other_pictures(result), columns, losses, **beside)
    tables = {"1.2_feature_losses.txt": text}
    makers = {"borders": _borders_table, "half_pixel": _half_pixel_table}
    for key, make in {**makers, "report_scale": _scale_table}.items():
        if found := result[key]:
            of_photos = f"{len(found['pictures'])} photos, {tags['weights'].rpartition(', ')[0]}"
            tables[f"1.2_{key}.txt"] = make(found, of_photos)
    figure = _dots(
        {"weights": losses, "random_weights": random},
        key="relative",
        title=f"What a shift of {shift_px:g} px to the left costs each loss",
        settings=f"Squared differences, lines: 95 % intervals. {both}",
        xlabel=AXIS,
        digits=3,
    )
    return tables, {"1.2_feature_losses.png": figure}


def _of_taps(known: Mapping, losses: Iterable[str]) -> dict:
    """The value in `known` of each loss's layer; an empty string for losses without a layer."""
    return {loss: known.get(loss.removeprefix("mae_"), "") for loss in losses}


def _dots(losses: Mapping[str, Mapping], key: str, **about) -> partial:
    """The figure of each squared loss, a dot and an interval, with trained and random weights."""
    labels = {**KINDS, "random_weights": "random weights, range over draws"}
    series, ends = {}, (key, "low", "high")
    for kind, rows in ((kind, squared(rows)) for kind, rows in losses.items() if rows):
        without = OF_PIXELS if kind == "random_weights" else ()  # they have no weights
        series[labels[kind]] = [
            _numbers(None if loss in without else row[end] for end in ends)
            for loss, row in rows.items()
        ]
    return partial(plotting.dots, names=list(squared(losses["weights"])), series=series, **about)


def _borders_table(found: Mapping, tag: str) -> str:
    caption = (
        "Losses of all cells and of those that see no padding, calibrated by the others of these\n"
        f"photos. Shift: 1 px, noise: sigma {found['sigma']:g}; {found['crop_px']} px, {tag}."
    )
    columns = {"valid cells": "{cells}"}
    for pair in ("shift", "noise"):
        columns[f"{pair}, all"] = f"{{{pair}[all]:.4f}}"
        columns[f"{pair}, valid"] = f"{{{pair}[valid]:.4f}}"
    cells = {tap: f"{valid:,} of {all_:,}" for tap, (all_, valid) in found["cells"].items()}
    losses = found["losses"]
    return losses_table(caption, columns, losses, cells=_of_taps(cells, losses))


def _half_pixel_table(found: Mapping, tag: str) -> str:
    caption = (
        "Losses of half a pixel, calibrated by the others of these photos. exact: a whole pixel\nof"
        f" twice the size, averaged over 2x2. Fourier: interpolated. {found['side_px']} px, {tag}."
    )
    columns = {"half, exact": "{exact:.4f}", "half, Fourier": "{fourier:.4f}"}
    return losses_table(caption, {**columns, "whole": "{whole:.4f}"}, found["losses"])


def _scale_table(found: Mapping, tag: str) -> str:
    report = found["report"]
    caption = (
        "The report's raw losses, and ours by the input's scale; factor: how far off the worst of\n"
        f"the five is. Shifted, scaled to {found['side_px']} px; sigma {found['sigma']:g}. {tag}."
    )
    columns = {"input": "{scale}", "error": "{error}"}
    columns |= {key: f"{{{key}:.4g}}" for key in report} | {"factor": "{factor:.3g}"}
    rows = [{"scale": "the report", "error": "?", **report}, *found["rows"]]
    return table(caption, columns, rows)


# ------------------------------------------------------------------------------------ 1.3


def _noise_table(result: Mapping, tag: str) -> str:
    """1.3's table of losses under noise, for the photo and its shifted copy; one row per loss."""
    clipped = result["clipped_share"]
    wrapped = "; ".join(
        f"{way}: l1 {row['l1_uint8']:.1f}, l2 {row['l2_uint8']:.1f}"
        for way, row in result["wrapped"].items()
    )
    caption = (
        f"Gaussian noise, sigma {result['sigma']:g} (0-255 units), {tag}; clipped:\n"
        f"{clipped['original']:.1%} of the original's values, {clipped['translated']:.1%} of the"
        " translated one's (tr.).\n8-bit arithmetic that wraps (the report: l1 176.0, l2 102.5), by"
        f" how noise is added:\n{wrapped}.\n{_other_pictures(result)}"
    )
    columns = {**CALIBRATED, "raw (tr.)": "{tr[raw]:.4g}", "relative (tr.)": "{tr[relative]:.4f}"}
    columns["95 % (tr.)"] = "{tr[low]:.4f} - {tr[high]:.4f}"
    random, translated = result["random_weights"] or {}, result["losses_translated"]
    columns |= random_columns(random, "relative", ".4f")
    return losses_table(caption, columns, result["losses"], tr=translated, random=random)


def dose_reports(result: Mapping, tags: Mapping[str, str]) -> tuple[dict, dict]:
    """1.3's tables and figures, by file name."""
    result = finite(result)  # NaN becomes None, as in results.json
    curves, side_px = result["curves"], result["curves"]["crop_px"]
    both = "; control: ".join(tags.values())
    tables, figures = {"1.3_noise.txt": _noise_table(result, both)}, {}
    for key, tag in tags.items():
        prefix = "random_" if key == "random_weights" else ""
        doses = {"shift": curves[f"{prefix}shift_px"], "noise": curves[f"{prefix}sigma"]}
        draws = 1 if prefix else result["noise_seeds"]
        title = f"{tag}: central {side_px}x{side_px} px squares, {draws} noise draw(s)"
        name = "1.3_dose_response" + ("_random" if prefix else "")
        tables[f"{name}.txt"] = _doses_table(curves[key], doses, title)
        figures[f"{name}.png"] = partial(
            plotting.dose_response,
            title="What a shift and noise cost each loss, by their size",
            settings=f"Squared differences. {title}",
            ylabel=AXIS,
            panels=[_panel(curves[key], kind, doses[kind]) for kind in DOSES],
            ylim=_limits([curves[key] for key in tags]),
        )
    of_weights = tags["weights"]
    tables["1.3_shift_equivalent_noise.txt"] = _equivalents_table(result, of_weights)
    tables["1.3_order_turns.txt"] = _turns_table(result, of_weights)
    tables["1.3_slopes.txt"] = _slopes_table(result["slopes"], of_weights)
    tables["1.3_distortions.txt"] = _distortions_table(result["distortions"], both)
    settings = f"Central {side_px}x{side_px} px squares. {both}"
    about = f"Squared differences, lines: 95 % intervals. {settings}"
    figures["1.3_shift_worth.png"] = _worth_figure(result, about)
    figures["1.3_distortions.png"] = _distortions_figure(result["distortions"], settings)
    return tables, figures


def _doses_table(losses: Mapping, doses: Mapping[str, list[float]], title: str) -> str:
    """The table of losses over the shift, and below it the table over the noise."""
    text = f"Calibrated losses, {title}\n"
    for kind, (_, unit) in DOSES.items():
        columns = {f"{dose:g}": f"{{relative[{i}]:.4f}}" for i, dose in enumerate(doses[kind])}
        of_kind = {loss: row[kind] for loss, row in losses.items()}
        text += losses_table("", columns, of_kind, unit)
    return text


def _panel(losses: Mapping, kind: str, doses: list[float]) -> plotting.Panel:
    """Squared losses over all doses but 0: a logarithmic axis can't show its loss of 0."""
    lines = {
        loss: tuple(_numbers(row[kind][key][1:]) for key in ("relative", "low", "high"))
        for loss, row in squared(losses).items()
    }
    return plotting.Panel(*DOSES[kind], doses[1:], lines)


def _limits(curves: list[Mapping]) -> tuple[float, float]:
    """Ends of the vertical axis, the same for the control: all doses but 0 fit."""
    shown = [curve for rows in curves for row in squared(rows).values() for curve in row.values()]
    lowest = min(min(curve["relative"][1:]) for curve in shown)
    highest = max(np.nanmax(_numbers(curve["relative"] + curve["high"])) for curve in shown)
    return 0.7 * lowest, 1.4 * highest


def _turns_table(result: Mapping, tag: str) -> str:
    caption = (
        "Calibrated losses a and b under noise: from this sigma (0-255 units) on a answers more"
        ' than b,\njust below it less; "-": at all sigmas more. 0.0: below the smallest sigma;'
        f' "none": beyond\n{max(result["curves"]["sigma"])}. {tag}.'
    )
    columns = {"a": "{a}", "b": "{b}", "sigma": "{sigma:.1f}"}
    columns["95 % interval"] = "{at[low]} - {at[high]}"
    return table(caption, columns, [{**row, "at": _reached(row)} for row in result["order_turns"]])


def _slopes_table(slopes: Mapping, tag: str) -> str:
    caption = (
        "Local slopes of calibrated losses over noise in log-log, at the middle of two doses (sigma"
        "\nin 0-255 units). 2: a square, 1: an absolute difference, of what grows like the noise;"
        f"\nnear 0: saturated. {tag}."
    )
    columns = {f"{sigma:.3g}": f"{{slope[{i}]:.2f}}" for i, sigma in enumerate(slopes["sigma"])}
    losses = {loss: row for loss, row in slopes.items() if loss != "sigma"}
    return losses_table(caption, columns, losses, "sigma")


def _distortions_table(distortions: Mapping, tag: str) -> str:
    trained, random = distortions["weights"], distortions.get("random_weights", {})
    caption = (
        "Distortions as strong as cost the pixels' l2 of a one-pixel shift: loss over the shift's\n"
        "loss, geometric means over photos. Above 1: the loss forgives the shift and sees the\n"
        f"distortion. Squares, then absolute differences, each the best first. {tag}."
    )
    names = next(iter(trained.values()))["ratios"]
    columns = {name: f"{{ratios[{name}][mean]:.2f}}" for name in names}
    columns |= {"mean": "{mean:.2f}", "95 % interval": "{low:.2f} - {high:.2f}"}
    columns |= random_columns(random, "mean", ".2f")
    return losses_table(caption, columns, squared(trained) | trained, random=random)


def _distortions_figure(distortions: Mapping, settings: str) -> partial:
    """1.3's figure of squared losses by distortion, with trained and with random weights."""
    shown = squared(distortions["weights"])
    names, panels = list(next(iter(shown.values()))["ratios"]), {}
    for kind, losses in distortions.items():
        rows = [losses[loss] for loss in shown]
        ratios = [[*(row["ratios"][name]["mean"] for name in names), row["mean"]] for row in rows]
        label = KINDS[kind] if len(distortions) > 1 else ""  # the weights may be random by choice
        panels[label] = np.array(ratios)
        if kind == "random_weights":  # losses of pixels have no weights
            panels[label][[loss in OF_PIXELS for loss in shown]] = np.nan
    return partial(
        plotting.ratio_grid,
        title="Which loss forgives one pixel of shift and still sees other changes?",
        settings="A distortion's loss over that of the shift, both of the same pixel l2; blue: seen"
        f" more than the shift. Squared differences. {settings}",
        rows=list(shown),
        columns=[*names, "geometric\nmean"],
        panels=panels,
    )


def _worth_figure(result: Mapping, settings: str) -> partial:
    """1.3's figure of the noise that costs each loss as much as a one-pixel shift, as dots."""
    equal = result["shift_equivalent_sigma_intervals"]
    sigmas = {loss: row["sigma"] for loss, row in squared(equal["weights"]).items()}
    title = "The noise that costs as much as a shift of one pixel"
    if known := {loss: sigma for loss, sigma in sigmas.items() if sigma is not None}:
        ends = min(known, key=known.get), max(known, key=known.get)
        first, last = (f"{known[loss]:.1f} in {plotting.shown_name(loss)}" for loss in ends)
        title += f": sigma {first}, {last}"
    xlabel = "sigma of the noise in 0-255 units (low: weak noise costs as much as the shift)"
    about = {"title": title, "settings": settings, "xlabel": xlabel, "digits": 1}
    return _dots(equal, "sigma", **about)


def _equivalents_table(result: Mapping, tag: str) -> str:
    curves, equal = result["curves"], result["shift_equivalent_sigma_intervals"]
    side_px, at_1_px = curves["crop_px"], list(curves["shift_px"]).index(1)
    caption = (
        f"The noise that costs as much as a one-pixel shift: sigma in 0-255 units, {tag},\ntheir"
        f' central {side_px}x{side_px} px. Low: weak noise costs as much as the shift. "none":'
        f"\nnot reached up to sigma {max(curves['sigma'])}."
    )
    columns = {"relative at 1 px": f"{{shift[relative][{at_1_px}]:.4f}}"}
    columns |= {"equal sigma": "{equal[sigma]}", "95 % interval": "{equal[low]} - {equal[high]}"}
    reached = {kind: {k: _reached(row) for k, row in rows.items()} for kind, rows in equal.items()}
    trained, random = reached["weights"], reached.get("random_weights", {})
    columns |= random_columns(random, "sigma")
    return losses_table(caption, columns, curves["weights"], equal=trained, random=random)


def _reached(row: Mapping[str, float | None]) -> dict[str, str | None]:
    """A row's sigma and interval as text, "none" where no dose reached it; `low` may be None."""
    keys = ("sigma", "low", "high")
    text = {key: "none" if row[key] is None else f"{row[key]:.1f}" for key in keys}
    return text if row["low"] is not None else {**text, "low": None}


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    """Values of results.json as floats; null becomes NaN, which it stands for."""
    return np.array(list(values), float)


def _other_pictures(result: Mapping) -> str:
    """The caption's sentence on the other pictures that calibrate the losses."""
    names, resized = result["references"], result["references_resized"]
    if len(names) > ROWS:
        return f"Another picture: others of the {len(names):,} photos."
    scaled = {name: f"{name} (scaled from {size})" for name, size in resized.items()}
    return f"Another picture: {printable(', '.join(scaled.get(name, name) for name in names))}."


def dose_strip(path: Path, pictures: Sequence[np.ndarray]) -> None:
    """Save pictures, uint8 (height, width, 3), in a row for the page's sliders."""
    from PIL import Image

    Image.fromarray(np.concatenate(pictures, axis=1)).save(path, "JPEG", quality=88)
