"""How Problem 3's studies are told: the report's first steps, stems, places of f, exponents."""

from collections.abc import Mapping, Sequence
from functools import partial

from common.job import printable
from common.reporting import plotting
from common.reporting.problem3 import recipe_words, width_words
from common.reporting.tables import table

# ------------------------------------------------------------------- 3.4 at the report's own size


def with_forecast(cases: Sequence[Mapping], border: float) -> list[dict]:
    """First passes with their forecast in closed form.

    Added keys: stem_peak; stage_peak, of the first stage; shortcut_peak, of what the 1x1 shortcut
    after it puts into its batch norm; closed_form_peak, the stem's to the power of 8 where f
    squares each of three sums; forecast_dead, whether the stem's is above the border.
    """
    rows = []
    for case in cases:
        stem, squared = case["peaks"]["maxpool"], case["residual"] == "sum"
        told = {"stem_peak": stem, "stage_peak": case["peaks"]["layer1.2"]}
        told["shortcut_peak"] = case["peaks"]["layer2.0.shortcut.0"]
        told["closed_form_peak"] = stem**8 if squared and stem < 1e38 else None
        rows.append({**case, **told, "forecast_dead": squared and stem >= border})
    return rows


def border_counts(cases: Sequence[Mapping], peak: float) -> dict:
    """How many first passes of networks with f after the sum are below and above the border.

    Keys: peak, of the border; below and above, each {"passes", "infinite" (with a variance that is
    not finite), "dead"}; lowest_dead_loss and highest_dead_loss, None without one that is dead.
    """
    squared = [case for case in cases if case["residual"] == "sum"]
    sides = {"below": [], "above": []}
    for case in squared:
        sides["above" if case["stem_peak"] >= peak else "below"].append(case)
    counts = {
        side: {
            "passes": len(found),
            "infinite": sum(case["infinite_from"] is not None for case in found),
            "dead": sum(case["dead_from"] is not None for case in found),
        }
        for side, found in sides.items()
    }
    losses = [case["first_loss"] for case in squared if case["dead_from"]]
    ends = {"lowest_dead_loss": min(losses, default=None)}
    return {"peak": peak, **counts, **ends, "highest_dead_loss": max(losses, default=None)}


def dead_by_pictures(cases: Sequence[Mapping], size_px: int, width: float) -> dict[str, dict]:
    """Of the report's network how many are dead: {pictures: {images: {"networks", "dead"}}}."""
    report, counts = report_setting(size_px, width), {}
    for case in cases:
        if all(case[key] == value for key, value in report.items()):
            of_pictures = counts.setdefault(case["pictures"], {})
            row = of_pictures.setdefault(str(case["images"]), {"networks": 0, "dead": 0})
            row["networks"] += 1
            row["dead"] += case["dead_from"] is not None
    return counts


def report_setting(size_px: int, width: float) -> dict:
    """What a first pass has in the report's setting; pictures and seed vary."""
    network = {"width": width, "residual": "sum", "init": "pytorch"}
    return {"image_size_px": size_px, **network, "scaling": "normalised"}


def batch_arithmetic() -> dict:
    """What the report's numbers of batches say of its images: 5,204 of 128, and 18,213 of 32.

    Of n images 80 % make 5,204 batches of 128 and 70 % make 18,213 of 32, the last of each perhaps
    not full. Keys: images_least, images_most (n), classes, images_per_class (of the most).
    """
    fits = [
        images
        for images in range(830_000, 835_000)
        if -(-int(0.8 * images) // 128) == 5204 and -(-int(0.7 * images) // 32) == 18_213
    ]
    least, most = min(fits), max(fits)
    return {
        "images_least": least,
        "images_most": most,
        "classes": 650,
        "images_per_class": most / 650,
    }


def reproduction_tables(result: Mapping, size_px: int, width: float, tag: str) -> dict[str, str]:
    """3.4's tables of `--reproduce` by file name: first passes, first steps, cures."""
    of_report = f"{size_px} px, {', '.join(width_words(width)) or 'full width'}; {printable(tag)}"
    equal = f"of equal logits {result['chance_loss']:.4f}; the report printed 6.4761"
    columns = {name: f"{{{key}}}" for name, key in CASE_COLUMNS.items()}
    columns |= {"first loss": "{first_loss:.5g}", "stem's peak": "{stem_peak:.3g}"}
    columns |= {"its 8th power": "{closed_form_peak:.1e}", "stage 1's peak": "{stage_peak:.1e}"}
    columns["shortcut's"] = "{shortcut_peak:.1e}"
    columns |= {
        "forecast": "{forecast}",
        "infinite from": "{infinite_from}",
        "constant": "{dead_share:.0%}",
        "network": "{verdict}",
    }
    cases = [
        {
            **case,
            "forecast": "infinite" if case["forecast_dead"] else "finite",
            "verdict": "dead" if case["dead_from"] else "alive",
        }
        for case in result["first_losses"]
    ]
    caption = (
        "First passes of new networks in training mode; classes: 650 logits. Forecast: an infinite"
        " variance where the stem's\npeak is above"
        f" {result['border_peak']:.0f}, whose 8th power squared is fp32's largest. Infinite from:"
        " the first batch norm with one. Constant: the\nshare of all channels of batch norms that"
        " do not depend on the image; dead is a network of whose last batch norm none\ndoes. Loss"
        f" {equal}. {printable(tag)}."
    )
    tables = {"3.4_first_losses.txt": table(caption, columns, cases)}
    steps = {name: f"{{{key}}}" for name, key in STEP_COLUMNS.items()}
    images = result["steps"][0]["images"]
    seed = f"the seed is the first whose network is dead at {images} images, if one is"
    caption = f"The first steps without any check; {seed}.\nLoss {equal}. {of_report}."
    rows = [_step_row(row) for row in result["steps"]]
    tables["3.4_first_steps.txt"] = table(caption, steps, rows) + _autopsy_words(result["steps"])
    columns = {"change": "{change}", **steps}
    del columns["form"]
    caption = (
        "One change at a time to the training with SGD and f as `where` (the clamp is of our form),"
        f" without any check; {seed}.\nLoss {equal}. {of_report}."
    )
    rows = [_step_row(row) for row in result["cures"]]
    tables["3.4_cures.txt"] = table(caption, columns, rows)
    return tables


CASE_COLUMNS = {"images": "images", "px": "image_size_px", "width": "width", "f after": "residual"}
CASE_COLUMNS |= {"init": "init", "input": "scaling", "pictures": "pictures", "seed": "seed"}
STEP_COLUMNS = {"network": "network", "form": "form", "optimizer": "optimizer"}
STEP_COLUMNS |= {
    "rate": "learning_rate",
    "seed": "seed",
    "images": "images",
    "losses": "told_losses",
}
STEP_COLUMNS |= {"gradients not finite in step 1": "bad", "infinite from": "infinite_from"}


AUTOPSY = """
{network}, f as `where`, step 1, going back: the first batch norm that makes finite gradients NaN is
{module}. In its channel {channel} alone: input up to {peak_input:.2g}, gradient up to
{peak_gradient:.2g}; variance {variance_fp32:.2g} in fp32, {variance_fp64:.2g} in float64;
1 / deviation {inverse_deviation_fp32:.2g} in fp32; sum of gradient x deviation {sum_fp32:.2g} in
fp32, {sum_fp64:.2g} in float64; that times 1 / variance: {factor_fp32:.2g} in fp32,
{factor_fp64:.2g} in float64.
"""


def told_losses(losses: Sequence[float]) -> str:
    """The losses of a few steps in words, NaN as such; of many the first three and the last."""
    words = [f"{loss:.5g}".replace("nan", "NaN") for loss in losses]
    return ", ".join(words if len(words) < 5 else [*words[:3], "...", words[-1]])


def _step_row(row: Mapping) -> dict:
    return {**row, "bad": f"{len(row['non_finite_gradients'])} of {row['tensors']}"}


def _autopsy_words(steps: Sequence[Mapping]) -> str:
    words = []
    for row in steps:
        if found := row.get("autopsy"):
            # results.json has words for what is not finite.
            values = {k: float(v) if v in ("inf", "-inf", "nan") else v for k, v in found.items()}
            words.append(AUTOPSY.format(**{"network": row["network"], **values}))
    return "".join(words)


def first_loss_figure(result: Mapping, size_px: int, width: float, tag: str) -> partial:
    """The figure of the report's network's first losses by batch size and kind of pictures."""
    report, kinds = report_setting(size_px, width), {}
    for case in result["first_losses"]:
        if all(case[key] == value for key, value in report.items()):
            point = (case["images"], case["first_loss"], case["dead_from"] is not None)
            kinds.setdefault(f"pictures: {case['pictures']}", []).append(point)
    return partial(
        plotting.first_losses,
        title="First losses of new networks by batch size; the filled ones are dead",
        settings=f"f after the sums (our assumption), before any step, {size_px} px. Dead: the same"
        f" answer for every picture. {tag}",
        kinds=kinds,
        level=(f"dead: ln 650 = {result['chance_loss']:.3f}", result["chance_loss"]),
    )


# ------------------------------------------------------------------------- 3.4 the three studies

STUDY_COLUMNS = {
    "stems": {
        "stem": "{stem}",
        "gammas": "{gamma:g}",
        "branches": "{branch}",
        "change": "{change}",
    },
    "factorial": {"f in": "{told}", "recipe": "{recipe}"},
    "exponents": {"p": "{power:g}", "gammas": "{gamma:g}", "kurtosis": "{kurtosis:.1f}"},
}


def study_report(study: str, result: Mapping, tag: str) -> tuple[str, partial | None]:
    """The table of a study's trainings, and the figure where it has one."""
    rows = [{**row, **{f"d_{k}": v for k, v in (row["difference"] or {}).items()}} for row in
            result[study]]  # fmt: skip
    for row in rows:
        row["told"] = " + ".join(row.get("places", [])) or "none"
        row["ended"] = row["stopped"][0].split(": the first")[0] if row["stopped"] else None
        row["bad"] = row["test_not_finite"] or None
        row["spread"] = (
            f" +- {row['test_top1_std']:.1f}" if row["test_top1_std"] is not None else ""
        )
    columns = {**STUDY_COLUMNS[study], "seeds": "{seeds}", "val top-1": "{val_top1:.1f}"}
    columns["test top-1"] = "{test_top1:.1f}{spread}"
    columns["less ReLU throughout"] = "{d_mean:+.1f} ({d_low:+.1f} - {d_high:+.1f})"
    columns |= {"not finite": "{bad}", "stopped": "{ended}"}
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
    figure = None
    if study == "exponents":
        title = "What the exponent of f_p(x) = x^p, 0.2x costs"
        figure = partial(plotting.tails, title=title, settings=tag, rows=rows)
    return table(caption, columns, rows), figure
