"""How Problem 1 is told: its tables and figures, made of what results.json holds.

A `tag` says which weights and photos a result is of, such as "ImageNet weights, 6 photo(s)".
"""

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np

from common.job import printable
from common.reporting import plotting
from common.reporting.ratios import distortions_figure, is_absolute, squared
from common.reporting.tables import table

INTERVAL = "{low:.4f} - {high:.4f}"
ROWS = 24  # of a table with a row a photo, at most
RANDOM = {"random": "{random[relative]:.4f}", "its range": "{random[low]:.4f} - {random[high]:.4f}"}


def both(tags: Mapping[str, str]) -> str:
    """The tags of a result and of its control, in one."""
    return "; control: ".join(tags.values())


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


def feature_reports(
    result: Mapping, shift_px: float, edge: str, tags: Mapping[str, str]
) -> tuple[dict, dict]:
    """1.2's tables and figures, by file name; `tags` as `dose_reports` takes them."""
    tag = both(tags)
    tables = {"1.2_feature_losses.txt": feature_table(result, shift_px, edge, tag)}
    tables |= {
        f"1.2_{key}.txt": make(result[key], tags["weights"].rpartition(", ")[0])  # no photos
        for key, make in (
            ("borders", _borders_table),
            ("half_pixel", _half_pixel_table),
            ("report_scale", _scale_table),
        )
        if result[key]
    }
    return tables, {"1.2_feature_losses.png": feature_figure(result, shift_px, tag)}


def feature_table(result: Mapping, shift_px: float, edge: str, tag: str) -> str:
    """1.2's losses under the shift, a row a loss."""
    caption = (
        f"Shift by {shift_px:g} px, edge {edge}, {printable(tag)}.\n"
        "Features: MSE, and MAE as mae_. raw: mean loss. relative: 0 = the same, 1 = another\n"
        "picture, with its 95 % bootstrap interval over photos. random: with random weights,\n"
        f"the lowest and the highest draw.\n{_other_pictures(result)}"
    )
    columns = {"loss": "{loss}", "layer": "{layer}"}
    columns |= {"raw": "{raw:.4g}", "relative": "{relative:.4f}", "95 % interval": INTERVAL}
    numbers, random = result["layers"], result.get("random_weights")
    rows = [
        {"loss": loss, "layer": numbers.get(loss.removeprefix("mae_"), ""), **row}
        for loss, row in result["losses"].items()
    ]
    return table(caption, columns | (RANDOM if random else {}), _beside(rows, random))


def _beside(rows: list[dict], random: Mapping | None) -> list[dict]:
    """Rows with a "loss", each with the control's row under "random" where there is one."""
    return [{**row, "random": (random or {}).get(row["loss"], {})} for row in rows]


def feature_figure(result: Mapping, shift_px: float, tag: str) -> partial:
    """1.2's calibrated squared losses as dots."""
    shown = {"ImageNet weights" if result["weights"]["sha256"] else "weights": result["losses"]}
    if result["random_weights"]:
        shown["random weights, range over draws"] = result["random_weights"]
    return partial(
        plotting.dots,
        title=f"What a shift of {shift_px:g} px to the left costs each loss",
        settings=f"Squared differences, lines: 95 % intervals. {tag}",
        xlabel="calibrated loss (0 = the same, 1 = another picture)",
        names=list(squared(result["losses"])),
        series={
            label: [
                _numbers(row[key] for key in ("relative", "low", "high"))
                for row in squared(losses).values()
            ]
            for label, losses in shown.items()
        },
        digits=3,
    )


def _borders_table(found: Mapping, tag: str) -> str:
    """What leaving out the cells at the border changes."""
    caption = (
        f"Calibrated losses of all cells, and of those alone that see no zero of the padding:\n"
        f"{len(found['pictures'])} photos, central {found['crop_px']} px, {printable(tag)}."
    )
    columns = {"loss": "{loss}", "valid cells": "{cells}"}
    for pair in ("shift", "noise"):
        columns |= {f"{pair}, all": f"{{{pair}[all]:.4f}}", "valid": f"{{{pair}[valid]:.4f}}"}
        columns = {(f"{pair}, valid" if key == "valid" else key): v for key, v in columns.items()}
    cells = {tap: f"{valid:,} of {all_:,}" for tap, (all_, valid) in found["cells"].items()}
    rows = [
        {"loss": loss, "cells": cells.get(loss.removeprefix("mae_"), ""), **row}
        for loss, row in found["losses"].items()
    ]
    return table(caption, columns, rows)


def _half_pixel_table(found: Mapping, tag: str) -> str:
    """Half a pixel made exactly, and by interpolation."""
    caption = (
        "Half a pixel, calibrated losses. exact: a picture of twice the size moves by a whole\n"
        "pixel, then each 2x2 pixels are averaged. Fourier: the small picture is interpolated.\n"
        f"whole: one pixel. {len(found['pictures'])} photos, {found['side_px']} px,"
        f" {printable(tag)}."
    )
    columns = {"loss": "{loss}", "half, exact": "{exact:.4f}", "half, Fourier": "{fourier:.4f}"}
    rows = [{"loss": loss, **row} for loss, row in found["losses"].items()]
    return table(caption, columns | {"whole": "{whole:.4f}"}, rows)


def _scale_table(found: Mapping, tag: str) -> str:
    """Which scale of the input gives the report's raw losses."""
    report = found["report"]
    caption = (
        f"The report's raw losses, and ours by the input's scale: {len(found['pictures'])} photos,"
        f"\nshifted, then scaled to {found['side_px']} px; noise: layer 30. factor: how far off the"
        f" worst\nof the five is. {printable(tag)}."
    )
    columns = {"input": "{scale}", "error": "{error}"}
    columns |= {key: f"{{{key}:.4g}}" for key in report} | {"factor": "{factor:.3g}"}
    return table(
        caption, columns, [{"scale": "the report", "error": "?", **report}, *found["rows"]]
    )


def noise_table(result: Mapping, tag: str) -> str:
    """1.3's losses under noise, a row a loss, of the photo and of its shifted copy."""
    clipped, translated = result["clipped_share"], result["losses_translated"]
    wrapped = "; ".join(
        f"{way}: l1 {row['l1_uint8']:.1f}, l2 {row['l2_uint8']:.1f}"
        for way, row in result["wrapped"].items()
    )
    caption = (
        f"Gaussian noise, sigma {result['sigma']:g} (0-255 units), {printable(tag)}; clipped:\n"
        f"{clipped['original']:.1%} of the original's values, {clipped['translated']:.1%} of the"
        " translated one's.\nOriginal against its noisy copy; (tr.): translated against its noisy"
        f" copy.\n8-bit arithmetic that wraps (the report: l1 176.0, l2 102.5), by how noise is"
        f" added:\n{wrapped}.\n{_other_pictures(result)}"
    )
    columns = {"loss": "{loss}"}
    columns |= {"raw": "{raw:.4g}", "relative": "{relative:.4f}", "95 % interval": INTERVAL}
    columns |= {"raw (tr.)": "{tr[raw]:.4g}", "relative (tr.)": "{tr[relative]:.4f}"}
    columns |= {"95 % (tr.)": "{tr[low]:.4f} - {tr[high]:.4f}"}
    rows = [{"loss": loss, **row, "tr": translated[loss]} for loss, row in result["losses"].items()]
    random = result["random_weights"]
    return table(caption, columns | (RANDOM if random else {}), _beside(rows, random))


def dose_reports(result: Mapping, tags: Mapping[str, str]) -> tuple[dict, dict]:
    """1.3's tables and figures of the dose-response, by file name.

    `tags` are of the result's curves: "weights", and "random_weights" where there is a control.
    """
    curves, side_px = result["curves"], result["curves"]["crop_px"]
    draws = f"{result['noise_seeds']} noise draw(s)"
    ylim = _limits([curves[key] for key in tags])
    tables, figures = {}, {}
    for key, tag in tags.items():
        name = "1.3_dose_response" + ("_random" if key == "random_weights" else "")
        title = f"{printable(tag)}: central {side_px}x{side_px} px squares, {draws}"
        text, panels, caption = "", [], f"Calibrated losses, {title}\n"
        prefix = "random_" if key == "random_weights" else ""
        for kind, heading, unit, doses in (
            ("shift", "translation", "shift in px", curves[f"{prefix}shift_px"]),
            ("noise", "Gaussian noise", "sigma in 0-255 units", curves[f"{prefix}sigma"]),
        ):
            columns = {f"{dose:g}": f"{{relative[{i}]:.4f}}" for i, dose in enumerate(doses)}
            rows = [{"loss": loss, **row[kind]} for loss, row in curves[key].items()]
            text += table(caption, {unit: "{loss}", **columns}, rows)
            caption = ""
            # Dose 0 has loss 0, which a logarithmic axis can't show.
            lines = {
                loss: tuple(_numbers(row[kind][key][1:]) for key in ("relative", "low", "high"))
                for loss, row in squared(curves[key]).items()
            }
            panels.append(plotting.Panel(heading, unit, doses[1:], lines))
        tables[f"{name}.txt"] = text
        figures[f"{name}.png"] = partial(
            plotting.dose_response,
            title="What a shift and noise cost each loss, by their size",
            settings=f"Squared differences. {title}",
            ylabel="calibrated loss (0 = the same, 1 = another picture)",
            panels=panels,
            ylim=ylim,
        )
    tag = both(tags)
    tables["1.3_shift_equivalent_noise.txt"] = _equivalents_table(result, tags["weights"])
    tables["1.3_order_turns.txt"] = _turns_table(result, tags["weights"])
    tables["1.3_slopes.txt"] = _slopes_table(result, tags["weights"])
    tables["1.3_distortions.txt"] = _distortions_table(result, tag)
    settings = f"Central {side_px}x{side_px} px squares. {tag}"
    figures["1.3_shift_worth.png"] = worth_figure(
        result, f"Squared differences, lines: 95 % intervals. {settings}"
    )
    figures["1.3_distortions.png"] = distortions_figure(result, settings)
    return tables, figures


def _turns_table(result: Mapping, tag: str) -> str:
    """The noise from which one loss answers more than another."""
    largest = max(result["curves"]["sigma"])
    caption = (
        "Calibrated losses a and b under noise, two of a kind: from this sigma (0-255 units) on a\n"
        'answers more than b, just below it less; "-": a answers more at all sigmas. Of an end,\n'
        f'0.0 is below the smallest sigma, and "none" beyond {largest}. {printable(tag)}.'
    )
    columns = {"a": "{a}", "b": "{b}", "sigma": "{sigma:.1f}"}
    columns["95 % interval"] = "{at[low]} - {at[high]}"
    keys = ("sigma", "low", "high")
    rows = [
        {**row, "at": _reached({key: row[key] for key in keys})} for row in result["order_turns"]
    ]
    return table(caption, columns, rows)


def _slopes_table(result: Mapping, tag: str) -> str:
    """The local slopes of the losses over sigma."""
    sigmas = result["slopes"]["sigma"]
    caption = (
        "How fast calibrated losses grow with noise: local slopes in log-log between two doses,\n"
        "at their middle (sigma in 0-255 units). 2: a square, or 1: an absolute difference, of\n"
        f"what grows like the noise; near 0: saturated. {printable(tag)}."
    )
    columns = {f"{sigma:.3g}": f"{{slope[{i}]:.2f}}" for i, sigma in enumerate(sigmas)}
    rows = [{"loss": loss, **row} for loss, row in result["slopes"].items() if loss != "sigma"]
    return table(caption, {"sigma": "{loss}", **columns}, rows)


def _distortions_table(result: Mapping, tag: str) -> str:
    """What distortions cost beside a shift of the same pixel loss, the best of a kind first."""
    trained, random = (result["distortions"].get(key) for key in ("weights", "random_weights"))
    names = list(next(iter(trained.values()))["ratios"])
    caption = (
        "Distortions as strong as cost the pixels' l2 of a one-pixel shift: loss over the shift's\n"
        "loss, geometric means over photos. Above 1: the loss forgives the shift and sees the\n"
        "distortion. l2 is 1, and so is PSNR, a function of it. Squares, then absolute\n"
        f"differences, each the best first. {printable(tag)}."
    )
    columns = {"loss": "{loss}"} | {name: f"{{ratios[{name}][mean]:.2f}}" for name in names}
    columns |= {"mean": "{mean:.2f}", "95 % interval": "{low:.2f} - {high:.2f}"}
    if random:
        columns |= {"random": "{random[mean]:.2f}"}
        columns["its range"] = "{random[low]:.2f} - {random[high]:.2f}"
    rows = [{"loss": loss, **row} for loss, row in trained.items()]
    rows.sort(key=lambda row: is_absolute(row["loss"]))
    return table(caption, columns, _beside(rows, random))


def worth_figure(result: Mapping, settings: str) -> partial:
    """1.3's finding as dots: the noise that costs each loss as much as a one-pixel shift."""
    equal = {key: squared(rows) for key, rows in result["shift_equivalent_sigma_intervals"].items()}
    known = {k: row["sigma"] for k, row in equal["weights"].items() if row["sigma"] is not None}
    title = "The noise that costs as much as a shift of one pixel"
    if known:
        ends = [f"{known[k]:.1f} in {plotting.shown_name(k)}" for k in
                (min(known, key=known.get), max(known, key=known.get))]  # fmt: skip
        title += f": sigma {ends[0]}, {ends[1]}"
    labels = {"weights": "trained weights", "random_weights": "random weights, range over draws"}
    return partial(
        plotting.dots,
        title=title,
        settings=settings,
        xlabel="sigma of the noise in 0-255 units (low: more sensitive to noise than to the shift)",
        names=list(equal["weights"]),
        digits=1,
        series={
            labels[key]: [
                _numbers(row[k] for k in ("sigma", "low", "high")) for row in rows.values()
            ]
            for key, rows in equal.items()
        },
    )


def _equivalents_table(result: Mapping, tag: str) -> str:
    """The noise that costs as much as a one-pixel shift, a row a loss, beside the control's."""
    curves, equal = result["curves"], result["shift_equivalent_sigma_intervals"]
    side_px, at_1_px = curves["crop_px"], list(curves["shift_px"]).index(1)
    columns = {"loss": "{loss}", "relative at 1 px": "{relative:.4f}"}
    headers = {
        "weights": ("equal sigma", "95 % interval"),
        "random_weights": ("random", "its range"),
    }
    for key in equal:
        sigma, interval = headers[key]
        columns |= {sigma: f"{{{key}[sigma]}}", interval: f"{{{key}[low]}} - {{{key}[high]}}"}
    rows = [
        {
            "loss": loss,
            "relative": row["shift"]["relative"][at_1_px],
            **{key: _reached(sigmas[loss]) for key, sigmas in equal.items()},
        }
        for loss, row in curves["weights"].items()
    ]
    control = (
        " random: the same\nwith random weights, the lowest and the highest draw."
        if len(equal) > 1
        else ""
    )
    caption = (
        "The noise that costs as much as a one-pixel shift: sigma in 0-255 units,"
        f" {printable(tag)},\ntheir central {side_px}x{side_px} px."
        " A low sigma: a loss more sensitive to noise, by the"
        ' measure of its own answer\nto the shift. "none": not reached up to sigma'
        f" {max(curves['sigma'])}.{control}"
    )
    return table(caption, columns, rows)


def _reached(sigmas: Mapping[str, float | None]) -> dict[str, str | None]:
    """Sigmas as text, "none" where no dose reached the loss; no interval where low is missing.

    results.json stores both infinity and NaN as null.
    """
    known = {key: value is not None and np.isfinite(value) for key, value in sigmas.items()}
    text = {key: f"{value:.1f}" if known[key] else "none" for key, value in sigmas.items()}
    return text if known["low"] else {**text, "low": None}


def _limits(curves: list[Mapping]) -> tuple[float, float]:
    """Ends of the vertical axis: all doses but 0 fit, and a control has the same scale."""
    shown = [curve for rows in curves for row in squared(rows).values() for curve in row.values()]
    lowest = min(min(curve["relative"][1:]) for curve in shown)
    highest = max(np.nanmax(_numbers(curve["relative"] + curve["high"])) for curve in shown)
    return 0.7 * lowest, 1.4 * highest


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    """Values of results.json, which stores NaN as null."""
    return np.array(list(values), float)


def _other_pictures(result: Mapping) -> str:
    """A caption's sentence on the pictures that losses were calibrated with."""
    resized = result["references_resized"]
    if len(result["references"]) > ROWS:
        return f"Another picture: others of the {len(result['references']):,} photos."
    names = [
        f"{name} ({resized[name]})" if name in resized else name for name in result["references"]
    ]
    scaled = ";\nthose with a size were scaled to the photo's" if resized else ""
    return f"Another picture: {printable(', '.join(names))}{scaled}."
