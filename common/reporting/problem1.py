"""How Problem 1 is told: its tables and figures, made of what results.json holds.

A `tag` says which weights and photos a result is of, such as "ImageNet weights, 6 photo(s)".
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from common.job import printable
from common.reporting import plotting
from common.reporting.tables import table

INTERVAL = "{low:.4f} - {high:.4f}"
STRIP_PX = 176


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
    return table(caption, columns, [{"photo": photo, **row} for photo, row in images.items()])


def feature_table(result: Mapping, shift_px: float, edge: str, tag: str) -> str:
    """1.2's losses under the shift, a row a loss."""
    caption = (
        f"Shift by {shift_px:g} px, edge {edge}, {printable(tag)}.\n"
        "Features: MSE, and MAE as mae_. raw: mean loss. relative: 0 = the same, 1 = another\n"
        f"picture, with its 95 % bootstrap interval over photos.\n{_other_pictures(result)}"
    )
    columns = {"loss": "{loss}", "layer": "{layer}"}
    columns |= {"raw": "{raw:.4g}", "relative": "{relative:.4f}", "95 % interval": INTERVAL}
    numbers = result["layers"]
    rows = [
        {"loss": loss, "layer": numbers.get(loss.removeprefix("mae_"), ""), **row}
        for loss, row in result["losses"].items()
    ]
    return table(caption, columns, rows)


def feature_figure(result: Mapping, shift_px: float, tag: str) -> partial:
    """1.2's calibrated squared losses as dots."""
    shown = _squared(result["losses"])
    rows = [_numbers(row[key] for key in ("relative", "low", "high")) for row in shown.values()]
    return partial(
        plotting.dots,
        title=f"What a shift of {shift_px:g} px to the left costs each loss",
        settings=f"Squared differences, lines: 95 % intervals. {tag}",
        xlabel="calibrated loss (0 = the same, 1 = another picture)",
        names=list(shown),
        series={"loss": rows},
        digits=3,
    )


def noise_table(result: Mapping, tag: str) -> str:
    """1.3's losses under noise, a row a loss, of the photo and of its shifted copy."""
    clipped, translated = result["clipped_share"], result["losses_translated"]
    caption = (
        f"Gaussian noise, sigma {result['sigma']:g} (0-255 units), {printable(tag)}; clipped:\n"
        f"{clipped['original']:.1%} of the original's values, {clipped['translated']:.1%} of the"
        " translated one's.\nOriginal against its noisy copy; (tr.): translated against its noisy"
        f" copy.\n{_other_pictures(result)}"
    )
    columns = {"loss": "{loss}"}
    columns |= {"raw": "{raw:.4g}", "relative": "{relative:.4f}", "95 % interval": INTERVAL}
    columns |= {"raw (tr.)": "{tr[raw]:.4g}", "relative (tr.)": "{tr[relative]:.4f}"}
    columns |= {"95 % (tr.)": "{tr[low]:.4f} - {tr[high]:.4f}"}
    rows = [{"loss": loss, **row, "tr": translated[loss]} for loss, row in result["losses"].items()]
    return table(caption, columns, rows)


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
        for kind, heading, unit, doses in (
            ("shift", "translation", "shift in px", curves["shift_px"]),
            ("noise", "Gaussian noise", "sigma in 0-255 units", curves["sigma"]),
        ):
            columns = {f"{dose:g}": f"{{relative[{i}]:.4f}}" for i, dose in enumerate(doses)}
            rows = [{"loss": loss, **row[kind]} for loss, row in curves[key].items()]
            text += table(caption, {unit: "{loss}", **columns}, rows)
            caption = ""
            # Dose 0 has loss 0, which a logarithmic axis can't show.
            lines = {
                loss: tuple(_numbers(row[kind][key][1:]) for key in ("relative", "low", "high"))
                for loss, row in _squared(curves[key]).items()
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
    tables["1.3_shift_equivalent_noise.txt"] = _equivalents_table(result, tags["weights"])
    if "random_weights" in tags:
        settings = f"Squared differences, lines: 95 % intervals. {title}".replace(
            tags["random_weights"], tags["weights"]
        )
        figures["1.3_shift_worth.png"] = worth_figure(result, settings)
    return tables, figures


def worth_figure(result: Mapping, settings: str) -> partial:
    """1.3's finding as dots: the noise that costs each loss as much as a one-pixel shift."""
    equal = {
        key: _squared(rows) for key, rows in result["shift_equivalent_sigma_intervals"].items()
    }
    known = {k: row["sigma"] for k, row in equal["weights"].items() if row["sigma"] is not None}
    title = "The noise that costs as much as a shift of one pixel"
    if known:
        ends = [f"{known[k]:.1f} in {plotting.shown_name(k)}" for k in
                (min(known, key=known.get), max(known, key=known.get))]  # fmt: skip
        title += f": sigma {ends[0]}, {ends[1]}"
    labels = {"weights": "ImageNet weights", "random_weights": "random weights, the control"}
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
        "random_weights": ("random", "95 % (random)"),
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
    control = " random: the same with random weights." if len(equal) > 1 else ""
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
    shown = [curve for rows in curves for row in _squared(rows).values() for curve in row.values()]
    lowest = min(min(curve["relative"][1:]) for curve in shown)
    highest = max(np.nanmax(_numbers(curve["relative"] + curve["high"])) for curve in shown)
    return 0.7 * lowest, 1.4 * highest


def _squared(losses: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """The losses that are squared differences, which can be compared with each other alone."""
    return {k: row for k, row in losses.items() if k != "l1" and not k.startswith("mae_")}


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    """Values of results.json, which stores NaN as null."""
    return np.array(list(values), float)


def _other_pictures(result: Mapping) -> str:
    """A caption's sentence on the pictures that losses were calibrated with."""
    resized = result["references_resized"]
    names = [
        f"{name} ({resized[name]})" if name in resized else name for name in result["references"]
    ]
    scaled = ";\nthose with a size were scaled to the photo's" if resized else ""
    return f"Another picture: {printable(', '.join(names))}{scaled}."


def dose_strip(path: Path, pictures: Sequence[np.ndarray]) -> None:
    """The centres of pictures, uint8 (height, width, 3), side by side, as the page shows doses."""
    from PIL import Image

    row = []
    for picture in pictures:
        top, left = (max(0, side - STRIP_PX) // 2 for side in picture.shape[:2])
        row.append(picture[top : top + STRIP_PX, left : left + STRIP_PX])
    Image.fromarray(np.concatenate(row, axis=1)).save(path, "JPEG", quality=88)
