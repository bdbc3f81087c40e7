"""How Problem 3's studies are told: the report's first steps, stems, places of f, exponents."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from common.job import printable
from common.reporting.canvas import load_matplotlib, new_figure
from common.reporting.plotting import power_of_ten
from common.reporting.problem3 import recipe_words, width_words
from common.reporting.results import Findings
from common.reporting.tables import table

# ------------------------------------------------------------------- 3.4 at the report's own size

CASE_COLUMNS = {
    "images": "{images}",
    "px": "{image_size_px}",
    "width": "{width}",
    "f after": "{residual}",
    "init": "{init}",
    "input": "{scaling}",
    "pictures": "{pictures}",
    "seed": "{seed}",
    "first loss": "{first_loss:.5g}",
    "stem's peak": "{stem_peak:.3g}",
    "its 8th power": "{closed_form_peak:.1e}",
    "stage 1's peak": "{stage_peak:.1e}",
    "shortcut's": "{shortcut_peak:.1e}",
    "forecast": "{forecast}",
    "infinite from": "{infinite_from}",
    "constant": "{dead_share:.0%}",
    "network": "{verdict}",
}
STEP_COLUMNS = {
    "network": "{network}",
    "form": "{form}",
    "optimizer": "{optimizer}",
    "rate": "{learning_rate}",
    "seed": "{seed}",
    "images": "{images}",
    "losses": "{told_losses}",
    "gradients not finite in step 1": "{bad} of {tensors}",
    "infinite from": "{infinite_from}",
}
AUTOPSY = """
{network}, f as `where`, step 1, going back: the first batch norm that makes finite gradients NaN is
{module}. In its channel {channel} alone: input up to {peak_input:.2g}, gradient up to
{peak_gradient:.2g}; variance {variance_fp32:.2g} in fp32, {variance_fp64:.2g} in float64;
1 / deviation {inverse_deviation_fp32:.2g} in fp32; sum of gradient x deviation {sum_fp32:.2g} in
fp32, {sum_fp64:.2g} in float64; that times 1 / variance: {factor_fp32:.2g} in fp32,
{factor_fp64:.2g} in float64.
"""


def reproduction_tables(result: Mapping, size_px: int, width: float, tag: str) -> dict[str, str]:
    """3.4's tables of `--reproduce` by file name: first passes, first steps, cures."""
    cases = [
        {
            **case,
            "forecast": "infinite" if case["forecast_dead"] else "finite",
            "verdict": "dead" if case["dead_from"] else "alive",
        }
        for case in result["first_losses"]
    ]
    equal = f"of equal logits {result['chance_loss']:.4f}; the report printed 6.4761"
    passes = (
        "First passes of new networks in training mode; classes: 650 logits. Forecast: an infinite"
        " variance where the stem's\npeak is above"
        f" {result['border_peak']:.0f}, whose 8th power squared is fp32's largest. Infinite from:"
        " the first batch norm with one. Constant: the\nshare of all channels of batch norms that"
        " do not depend on the image; dead is a network of whose last batch norm none\ndoes. Loss"
        f" {equal}. {printable(tag)}."
    )
    settings = (
        "without any check; the seed is the first whose network is dead at"
        f" {result['steps'][0]['images']} images, if one is.\nLoss {equal}."
        f" {size_px} px, {', '.join(width_words(width)) or 'full width'}; {printable(tag)}."
    )
    cures = (
        "One change at a time to the training with SGD and f as `where` (the clamp is of our form),"
    )
    without_form = {header: cell for header, cell in STEP_COLUMNS.items() if header != "form"}
    change_columns = {"change": "{change}", **without_form}
    steps = table(f"The first steps {settings}", STEP_COLUMNS, map(_step_row, result["steps"]))
    autopsies = [row for row in result["steps"] if row.get("autopsy")]
    return {
        "3.4_first_losses.txt": table(passes, CASE_COLUMNS, cases),
        "3.4_first_steps.txt": steps + "".join(map(autopsy_words, autopsies)),
        "3.4_cures.txt": table(
            f"{cures} {settings}", change_columns, map(_step_row, result["cures"])
        ),
    }


def losses_words(losses: Sequence[float]) -> str:
    """The losses of a few steps in words, NaN as such; of many the first three and the last."""
    words = [f"{loss:.5g}".replace("nan", "NaN") for loss in losses]
    return ", ".join(words if len(words) < 5 else [*words[:3], "...", words[-1]])


def _step_row(row: Mapping) -> dict:
    return {**row, "bad": len(row["non_finite_gradients"])}


def autopsy_words(row: Mapping) -> str:
    """A training's autopsy in words; results.json has words for what is not finite."""
    values = {
        key: float(value) if value in ("inf", "-inf", "nan") else value
        for key, value in row["autopsy"].items()
    }
    return AUTOPSY.format(network=row["network"], **values)


def draw_first_losses(
    path: Path, cases: Sequence[Mapping], chance_loss: float, size_px: int, tag: str
) -> None:
    """First losses of the report's network by batch size and kind of pictures; dead ones filled."""
    title = "First losses of new networks by batch size; the filled ones are dead"
    settings = (
        f"f after the sums (our assumption), before any step, {size_px} px. Dead: the same"
        f" answer for every picture. {tag}"
    )
    ticker = load_matplotlib().ticker
    batches = sorted({case["images"] for case in cases})
    kinds = list(dict.fromkeys(case["pictures"] for case in cases))
    with new_figure(path, title, (1, 1), (9, 5), settings) as (_, ((axis,),)):
        for number, kind in enumerate(kinds):
            beside = 1.16 ** (number - (len(kinds) - 1) / 2)  # kinds stand side by side
            how = {"s": 38, "marker": "os^D"[number % 4], "edgecolors": f"C{number}", "zorder": 3}
            for dead, face in ((False, "none"), (True, f"C{number}")):
                shown = [
                    (case["images"] * beside, case["first_loss"])
                    for case in cases
                    if case["pictures"] == kind and (case["dead_from"] is not None) == dead
                ]
                label = None if dead else f"pictures: {kind}"
                axis.scatter(*np.reshape(shown, (-1, 2)).T, facecolors=face, label=label, **how)
        axis.axhline(chance_loss, color="black", linewidth=1, linestyle=":")
        place = {"textcoords": "offset points", "fontsize": 9}
        text = f"dead: ln 650 = {chance_loss:.3f}"
        axis.annotate(text, (batches[0] * 0.8, chance_loss), (0, 6), **place)
        axis.set(xlabel="pictures in the batch", ylabel="first loss", xscale="log", yscale="log")
        axis.xaxis.set(major_locator=ticker.FixedLocator(batches), major_formatter="{x:g}")
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set(major_formatter=power_of_ten, minor_locator=ticker.NullLocator())
        axis.legend(loc="upper left")


# ------------------------------------------------------------------------- 3.4 the three studies

STUDY_COLUMNS = {
    "stems": {
        "stem": "{stem}",
        "gammas": "{gamma:g}",
        "branches": "{branch}",
        "change": "{change}",
    },
    "factorial": {"f in": "{f_in}", "recipe": "{recipe}"},
    "exponents": {"p": "{power:g}", "gammas": "{gamma:g}", "kurtosis": "{kurtosis:.1f}"},
}


def study_findings(study: str, result: Mapping, tag: str) -> Findings:
    """The findings of a study's trainings: a table, and of the exponents a figure."""
    columns = {
        **STUDY_COLUMNS[study],
        "seeds": "{seeds}",
        "val top-1": "{val_top1:.1f}",
        "test top-1": "{test_top1:.1f}{spread}",
        "less ReLU throughout": "{difference[mean]:+.1f} ({difference[low]:+.1f} -"
        " {difference[high]:+.1f})",
        "not finite": "{not_finite}",
        "stopped": "{stop}",
    }
    recipe = recipe_words(result["recipe"])
    if study == "factorial":
        recipe = f"Recipe flags: {recipe}; report: {recipe_words(result['report_recipe'])}"
    caption = (
        f"{printable(tag)}.\n{recipe}, {result['recipe']['epochs']} epochs. Top-1 in per cent of"
        f" the epoch best on val,\nmean and standard deviation of the seeds that ended; chance"
        f" {result['chance']:.1f} %; the difference to ReLU\nthroughout by the"
        " same recipe in points of test top-1, paired by seed and image, with its 95 % interval;\n"
        "not finite: the logits of so many test images (of all seeds), which count as wrong."
    )
    text = table(caption, columns, [_study_row(row) for row in result[study]])
    if study != "exponents":
        return Findings(result, {f"3.4_{study}.txt": text})
    figure = partial(draw_exponents, tag=tag, rows=result[study])
    return Findings(result, {f"3.4_{study}.txt": text}, figures={f"3.4_{study}.png": figure})


def _study_row(row: Mapping) -> dict:
    spread = row["test_top1_std"]
    return {
        **row,
        "f_in": " + ".join(row.get("places", [])) or "none",
        "stop": row["stopped"][0].split(": the first")[0] if row["stopped"] else None,
        "not_finite": row["test_not_finite"] or None,
        "spread": "" if spread is None else f" +- {spread:.1f}",
    }


def draw_exponents(path: Path, tag: str, rows: Sequence[Mapping]) -> None:
    """Test top-1 over p of f_p, and over the kurtosis of its output, a colour a gamma.

    The row without a power is ReLU's, a level.
    """
    title = "What the exponent of f_p(x) = x^p, 0.2x costs"
    labels = {"power": "exponent p", "kurtosis": "kurtosis of f_p of a normal input, closed form"}
    shown = [row for row in rows if row["test_top1"] is not None]
    powers = sorted((row for row in shown if row["power"]), key=lambda row: row["power"])
    levels = [row["test_top1"] for row in shown if not row["power"]]
    gammas = sorted({row["gamma"] for row in powers}, reverse=True)
    with new_figure(path, title, (1, 2), (10, 4.6), tag, sharey=True) as (_, axes):
        for axis, (key, label) in zip(axes[0], labels.items(), strict=True):
            for level in levels:
                axis.axhline(level, color="grey", linestyle=":", label="ReLU throughout")
            for number, gamma in enumerate(gammas):
                of_gamma = [row for row in powers if row["gamma"] == gamma]
                aside = 0.015 * (number - 1) if key == "power" else 0
                x = [row[key] + aside for row in of_gamma]
                y = [row["test_top1"] for row in of_gamma]
                errors = [row["test_top1_std"] or 0 for row in of_gamma]
                how = {"fmt": "o-", "capsize": 3, "ms": 4, "linewidth": 1.2}
                axis.errorbar(x, y, errors, label=f"gammas start at {gamma:g}", **how)
            axis.set(xlabel=label)
        for row in powers:
            if row["power"] >= 1.75:  # below, points lie too close for their labels
                place = {"xytext": (6, -3), "textcoords": "offset points", "fontsize": 8}
                where = (row["kurtosis"], row["test_top1"])
                axes[0, 1].annotate(f"p = {row['power']:g}", where, **place)
        axes[0, 0].set(ylabel="test top-1 in %")
        axes[0, 0].legend(loc="lower left")
