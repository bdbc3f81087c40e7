"""The tables and figures of Problem 3, made from the values in results.json.

A `tag` names a result's data, image size and network width.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from common.job import printable
from common.reporting.html import shown
from common.reporting.plotting import load_matplotlib, new_figure, power_of_ten, shown_name
from common.reporting.results import Findings
from common.reporting.tables import table

OPTIMIZERS = {"sgd": "SGD with Nesterov momentum 0.9", "adamw": "AdamW"}


def recipe_words(recipe: Mapping) -> str:
    """Words for a recipe, given as a mapping of its fields."""
    warmup_epochs, norm = recipe["warmup_epochs"], recipe["clip_norm"]
    warm_up = f"{warmup_epochs:g} epochs of warm-up" if warmup_epochs else "no warm-up"
    clipping = f"gradients clipped to norm {norm:g}" if norm else "no clipping"
    words = [OPTIMIZERS[recipe["optimizer"]], f"learning rate {recipe['learning_rate']:g}"]
    return ", ".join([*words, recipe["precision"], warm_up, clipping])


def remarks(width: float, residual: str = "branch") -> list[str]:
    """Caption remarks on a ResNet-36 that is not the report's width, or has f after the sums."""
    wide = [] if width == 1 else [f"ResNet-36 {width:g} TIMES AS WIDE"]
    return ["f AFTER THE SUM"] * (residual == "sum") + wide


def catalogue_table(result: Mapping, data: str) -> str:
    """3.1's table: how many classes and images were drawn, and how many were quarantined."""
    names = {"images per class": "images_per_class", "images": "total"}
    numbers = {**result, "quarantined": len(result["quarantined"])}
    rows = []
    for name in ("classes", *names, "train", "val", "test", "quarantined"):
        number = numbers[names.get(name, name)]
        ends = number if isinstance(number, list) else [number]  # a list is [fewest, most]
        rows.append({"name": name, "number": " - ".join(f"{end:,}" for end in ends)})
    caption = f"Drawn from {printable(data)}, counted from the manifest."
    return table(caption, {"": "{name}", "number": "{number}"}, rows)


def moments_table(result: Mapping, samples: int) -> str:
    """3.3's table of moments, closed form and measured, by the normal input's deviation s."""
    columns = {"of": "{function}", "s": "{deviation:g}"}
    for key in ("mean", "variance", "kurtosis"):
        columns[key] = f"{{closed_form[{key}]:.4g}}"
        columns[f"measured {key}"] = f"{{measured[{key}]:.4g}}"
    caption = (
        f"Moments for x ~ N(0, s^2) in closed form, and measured on {samples:,} values;\n"
        "the kurtosis of a normal value is 3."
    )
    return table(caption, columns, result["moments"])


def draw_functions(path: Path, x: np.ndarray, curves: Mapping[str, tuple]) -> None:
    """Functions and their derivatives over x; `curves[name]` is (values, slopes).

    The derivative at 0 is marked, since it may jump there.
    """
    x = np.asarray(x)
    with new_figure(path, "", (1, 2), (9, 4)) as (_, axes):
        for number, (name, (values, slopes)) in enumerate(curves.items()):
            colour, slopes = f"C{number}", np.asarray(slopes)
            axes[0, 0].plot(x, values, color=colour, label=name)
            for side in (x < 0, x > 0):
                axes[0, 1].plot(x[side], slopes[side], color=colour)
            for slope in slopes[x == 0]:
                axes[0, 1].plot(0, slope, "o", color=colour)
                place = {"xytext": (-8, 40 + 16 * number), "textcoords": "offset points"}
                text = f"{name}: {slope + 0.0:g} at 0"
                axes[0, 1].annotate(text, (0, slope), **place, color=colour, ha="right")
        for axis, label in zip(axes[0], ("value", "derivative"), strict=True):
            axis.set(title=label, xlabel="x", ylabel=label)
        axes[0, 0].legend(loc="upper left")


def cost_table(result: Mapping, images: int, repeats: int, device: str) -> str:
    """3.3's table of costs: one row per shape, and one for all activations of the network."""
    ratios = {"time_vs_where": ("seconds", "where"), "memory_vs_where": ("bytes", "where")}
    ratios["time_vs_relu"] = ("seconds", "ReLU")
    rows = []
    for row in result["costs"]:
        costs = {name: row[key]["f"] / row[key][form] for name, (key, form) in ratios.items()}
        milliseconds = {form: 1e3 * seconds for form, seconds in row["seconds"].items()}
        shape = "x".join(str(size) for size in row["shape"])
        rows.append({**costs, **milliseconds, "shape": shape, "times": row["times"]})
    rows.append({**result, "shape": "all", "times": sum(row["times"] for row in rows)})
    columns = {"shape": "{shape}", "times": "{times}"}
    columns |= {form: f"{{{form}:.2f}}" for form in result["costs"][0]["seconds"]}
    columns |= {"f / where": "{time_vs_where:.2f}", "memory": "{memory_vs_where:.2f}"}
    columns["f / ReLU"] = "{time_vs_relu:.2f}"
    caption = (
        f"Forward + backward in ms, {images} images of 224 px, fp32, channels_last, {device};"
        f" median of {repeats}.\nwhere: f as torch.where(x > 0, x * x, 0.2 * x). memory: peak, f's"
        " over where's."
    )
    return table(caption, columns, rows)


# ------------------------------------------------------------ 3.4 forecast, changes and the doctor


def forecast_table(result: Mapping, tag: str) -> str:
    """3.4's table of the largest values before the first step, one row per network."""
    rows = [{"network": name, **forecast} for name, forecast in result["forecast"].items()]
    columns = {"network": "{network}", "stem": "{blocks[maxpool][peak]:.3g}"}
    columns |= {"largest": "{peak:.3g}", "in": "{module}", "logits": "{blocks[fc][peak]:.3g}"}
    columns |= {"beyond fp16 from": "{beyond_fp16}", "dead from": "{dead_from}"}
    caption = (
        "Overflow forecast: largest |output| of any module of new networks for one batch, in fp32;"
        f"\n{printable(tag)}.\nresnet36_sum: f after the sums (assumed). resnet34_f: ResNet-34 with"
        " f for its ReLUs."
    )
    return table(caption, columns, rows)


def changes_table(result: Mapping, last_steps: int, recipe: str, tag: str) -> str:
    """3.4's table of changes to the report's training, one row each; `recipe` is in words."""
    rows = [*result["single_changes"], *result["not_single_changes"]]
    columns = {
        "change": "{change}",
        "first loss": "{first_loss:.4g}",
        "loss": "{last_loss:.4g}",
        "finite steps": "{steps}",
        "diverges in": "step {divergence[step]}: {divergence[direction]} of {divergence[module]}",
        "dead layer": "step {dead[step]}: {dead[module]}",
    }
    caption = (
        "One change at a time to f after the sums (in brackets: two, and ResNet-34) by an assumed"
        f" recipe:\n{recipe}, batch {result['recipe']['batch_size']}. Loss: mean of the last"
        f" {min(last_steps, result['steps'])} finite steps of {result['steps']} at most, of equal"
        f" logits {result['chance_loss']:.3f}.\n{printable(tag)}."
    )
    return table(caption, columns, rows)


def doctor_table(result: Mapping, ranges: Mapping[str, float], recipe: str, tag: str) -> str:
    """3.4's table of the first value beyond each range, for each training that was watched.

    `ranges[precision]` is the precision's largest value; `recipe` is the report's, in words.
    """
    flags, rows = result["recipe"], []
    for name, beyond in result["beyond_range"].items():
        for precision, largest in ranges.items():
            row = {"network": name, "precision": precision, "largest": largest}
            rows.append({**row, **beyond.get(precision, {})})
        row = {"network": name, "precision": "fp32: a dead layer", "largest": ranges["fp32"]}
        dead = result["dead"][name]
        rows.append({**row, **dead, "direction": "variance"} if dead else row)
    columns = {"network": "{network}", "range of": "{precision}", "largest": "{largest:.3g}"}
    columns |= {"step": "{step}", "module": "{module}", "direction": "{direction}"}
    caption = (
        "The first output, gradient or batch's variance (a dead layer) beyond a precision's range,"
        f" in {result['steps']} steps.\nresnet36_sum: f after the sums (assumed),"
        f" resnet36_report_recipe: off the sums; both by {recipe}.\nThe other as trained, f:"
        f" {result['residual']}, {flags['optimizer']} {flags['learning_rate']:g},"
        f" {flags['precision']}. {printable(tag)}."
    )
    return table(caption, columns, rows)


def draw_doctor(
    path: Path,
    curves: Mapping[str, Mapping[int, list[float]]],
    blocks: Sequence[str],
    ranges: Mapping[str, float],
    tag: str,
) -> None:
    """3.4's log-scale figure of the peaks by depth: `curves[network][step]` has one per block.

    The first step is solid. Values that are not finite lie at the top.
    """
    title = "The largest output by depth, in the first and the last step watched"
    settings = f"After and off the sums by SGD at 0.1 in fp32, the third as it was trained. {tag}"
    limits = {"largest\nof fp16": ranges["fp16"], "largest of\nbf16, fp32": ranges["bf16"]}
    top = 10 * max(limits.values())
    with new_figure(path, title, (1, 1), (9, 5), settings) as (_, ((axis,),)):
        for number, (name, steps) in enumerate(curves.items()):
            for style, (step, values) in zip(("o-", "s--"), steps.items(), strict=False):
                label = f"{shown_name(name)}, step {step}"
                values = np.minimum(values, top)
                axis.plot(blocks, values, style, color=f"C{number}", ms=4, label=label)
        for name, limit in limits.items():
            axis.axhline(limit, color="grey", linewidth=1, linestyle=":")
            axis.text(1.01, limit, name, transform=axis.get_yaxis_transform(), va="center")
        axis.set(ylabel="largest |output| (topmost: not finite)", yscale="log")
        axis.yaxis.set_major_formatter(power_of_ten)
        axis.tick_params(axis="x", rotation=45)
        axis.legend(loc="upper right", bbox_to_anchor=(1, 0.9))


# ------------------------------------------------------------------- 3.4 at the report's own size

CASES = {
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
    "infinite from": "{infinite_from}",
    "constant": "{dead_share:.0%}",
    "dead from": "{dead_from}",
}
STEPS = {
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


def reproduction_tables(result: Mapping, size_px: int, width: float, tag: str) -> dict[str, str]:
    """3.4's tables of `--reproduce` by file name: first passes, first steps, cures."""
    equal = f"of equal logits {result['chance_loss']:.4f}; the report printed 6.4761"
    passes = (
        "First passes of new networks in training mode, 650 logits. Infinite from: the first batch"
        " norm with an infinite\nvariance, forecast where the stem's peak is above"
        f" {result['border_peak']:.0f}. Constant: the share of batch norms' channels that do not"
        " depend\non the image; in a dead network none of the last batch norm's does. Loss"
        f" {equal}. {printable(tag)}."
    )
    settings = (
        f"without any check; seed: the first dead at {result['steps'][0]['images']} images, if any."
        f"\nLoss {equal}. {size_px} px, {', '.join(remarks(width)) or 'full width'};"
        f" {printable(tag)}."
    )
    steps, cures = (
        [{**row, "bad": len(row["non_finite_gradients"])} for row in result[key]]
        for key in ("steps", "cures")
    )
    changes = {"change": "{change}", **STEPS}
    del changes["form"]
    autopsies = "".join(autopsy_text(row) for row in steps if row.get("autopsy"))
    return {
        "3.4_first_losses.txt": table(passes, CASES, result["first_losses"]),
        "3.4_first_steps.txt": table(f"The first steps {settings}", STEPS, steps) + autopsies,
        "3.4_cures.txt": table(
            f"One change at a time to SGD with f as `where`, {settings}", changes, cures
        ),
    }


def losses_words(losses: Sequence[float]) -> str:
    """The losses of a few steps as text; of five or more, only the first three and the last."""
    words = [f"{loss:.5g}".replace("nan", "NaN") for loss in losses]
    return ", ".join(words if len(words) < 5 else [*words[:3], "...", words[-1]])


def autopsy_text(row: Mapping) -> str:
    """Text on the first batch norm of step 1's backward pass that turns finite gradients NaN."""
    values = [f"  {key}: {shown(value)}" for key, value in row["autopsy"].items()]
    found = f"\n{row['network']}, f as `{row['form']}`, step 1: the batch norm that makes NaN"
    return "\n".join([found, *values, ""])


def draw_first_losses(
    path: Path, cases: Sequence[Mapping], chance_loss: float, size_px: int, tag: str
) -> None:
    """Draw first losses of new networks by batch size and kind of pictures; dead ones filled."""
    title = "First losses of new networks by batch size; filled: dead ones, with their number"
    settings = (
        f"f after the sums (our assumption), before any step, {size_px} px. Dead: the same"
        f" answer for every picture. {tag}"
    )
    ticker, place = load_matplotlib().ticker, {"textcoords": "offset points", "fontsize": 9}
    batches = sorted({case["images"] for case in cases})
    kinds = list(dict.fromkeys(case["pictures"] for case in cases))
    with new_figure(path, title, (1, 1), (9, 5), settings) as (_, ((axis,),)):
        for number, kind in enumerate(kinds):
            beside = 1.16 ** (number - (len(kinds) - 1) / 2)  # kinds stand side by side
            how = {"s": 38, "marker": "os^D"[number % 4], "edgecolors": f"C{number}", "zorder": 3}
            of_kind = [case for case in cases if case["pictures"] == kind]
            places = [case["images"] * beside for case in of_kind]
            losses = [case["first_loss"] for case in of_kind]
            faces = [f"C{number}" if case["dead_from"] else "none" for case in of_kind]
            axis.scatter(places, losses, facecolors=faces, label=f"pictures: {kind}", **how)
            dead = Counter(case["images"] for case in of_kind if case["dead_from"])
            for images, count in dead.items():
                mark = (images * beside, chance_loss)
                axis.annotate(count, mark, (0, 7), **place, color=f"C{number}", ha="center")
        axis.axhline(chance_loss, color="black", linewidth=1, linestyle=":")
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
TRAINED = {
    "seeds": "{seeds}",
    "val top-1": "{val_top1:.1f}",
    "test top-1": "{test_top1:.1f}{spread}",
    "less ReLU throughout": "{difference[mean]:+.1f} ({difference[low]:+.1f} -"
    " {difference[high]:+.1f})",
    "not finite": "{not_finite}",
    "stopped": "{stop}",
}


def study_findings(study: str, result: Mapping, tag: str) -> Findings:
    """A study's findings: the table of its trainings, and a figure if it is of exponents."""
    recipe = recipe_words(result["recipe"])
    if study == "factorial":
        recipe = f"Recipe flags: {recipe};\nreport: {recipe_words(result['report_recipe'])}"
    caption = (
        f"{printable(tag)}.\n{recipe}, {result['recipe']['epochs']} epochs.\nTop-1 in per cent of"
        f" the epoch best on val, mean and deviation of the seeds that ended; chance"
        f" {result['chance']:.1f} %; less ReLU:\npoints of test top-1 by the same recipe, paired by"
        " seed and image; not finite: test images with such logits,\nwhich count as wrong."
    )
    rows = [
        {
            **row,
            "f_in": " + ".join(row.get("places", [])) or "none",
            "stop": re.split(": the first|;", row["stopped"][0])[0] if row["stopped"] else None,
            "not_finite": row["test_not_finite"] or None,
            "spread": f" +- {row['test_top1_std']:.1f}" if row["test_top1_std"] is not None else "",
        }
        for row in result[study]
    ]
    tables, figures = {f"3.4_{study}.txt": table(caption, STUDY_COLUMNS[study] | TRAINED, rows)}, {}
    if study == "exponents":
        figures["3.4_exponents.png"] = partial(draw_exponents, tag=tag, rows=result[study])
    return Findings(result, tables, figures=figures)


def draw_exponents(path: Path, tag: str, rows: Sequence[Mapping]) -> None:
    """Draw test top-1 over p of f_p and over the kurtosis of its output, one colour per gamma.

    A row without a power is ReLU's, drawn as a horizontal line.
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
