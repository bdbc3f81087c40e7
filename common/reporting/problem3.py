"""How Problem 3 is told: its tables and figures, made of what results.json holds.

A `tag` says of what data a result is, at which size and width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common.job import printable
from common.reporting.canvas import new_figure
from common.reporting.plotting import image_grid, power_of_ten, shown_name
from common.reporting.tables import table

OPTIMIZERS = {"sgd": "SGD with Nesterov momentum 0.9", "adamw": "AdamW"}


def recipe_words(recipe: Mapping) -> str:
    """The words for a recipe, from its fields by name."""
    warmup_epochs, norm = recipe["warmup_epochs"], recipe["clip_norm"]
    warm_up = f"{warmup_epochs:g} epochs of warm-up" if warmup_epochs else "no warm-up"
    clipping = f"gradients clipped to norm {norm:g}" if norm else "no clipping"
    words = [OPTIMIZERS[recipe["optimizer"]], f"learning rate {recipe['learning_rate']:g}"]
    return ", ".join([*words, recipe["precision"], warm_up, clipping])


def width_words(width: float) -> list[str]:
    """The remark of captions on a ResNet-36 that is not as wide as the report's, or none."""
    return [] if width == 1 else [f"ResNet-36 {width:g} TIMES AS WIDE"]


def remarks(residual: str, width: float) -> list[str]:
    """The remarks of captions on the networks trained, where ResNet-36 is not as by default."""
    return (["f AFTER THE SUM"] if residual == "sum" else []) + width_words(width)


def catalogue_table(result: Mapping, data: str) -> str:
    """3.1's table: how many classes and images were drawn, and were quarantined."""
    names = {"images per class": "images_per_class", "images": "total"}
    numbers = {**result, "quarantined": len(result["quarantined"])}
    rows = []
    for name in ("classes", *names, "train", "val", "test", "quarantined"):
        number = numbers[names.get(name, name)]
        ends = number if isinstance(number, list) else [number]  # fewest and most where they differ
        rows.append({"name": name, "number": " - ".join(f"{end:,}" for end in ends)})
    caption = f"Drawn from {printable(data)}, counted from the manifest."
    return table(caption, {"": "{name}", "number": "{number}"}, rows)


def draw_samples(
    path: Path, data: str, class_names: Sequence[str], pictures: Mapping[str, list[np.ndarray]]
) -> None:
    """3.1's figure: pictures of some classes, a row a split, under each class's first name."""
    headers = [name.split(",")[0] for name in class_names]
    image_grid(path, f"{data}: {len(class_names)} random classes", headers, pictures)


def summary_text(result: Mapping, tables: Mapping[str, object]) -> str:
    """3.2's text: the tables, as torchsummary writes them, under their names."""
    width = result["width"]
    wide = "" if width == 1 else f", {width:g} TIMES AS WIDE AS THE REPORT'S"
    caption = f"ResNet-36, {result['classes']} classes, activation: {result['residual']}{wide}."
    return "\n".join([caption, *(f"{name}\n{rows}" for name, rows in tables.items())])


def moments_table(result: Mapping, samples: int) -> str:
    """3.3's table of moments, in closed form and measured, by the normal input's deviation s."""
    columns = {"of": "{function}", "s": "{deviation:g}"}
    for key in ("mean", "variance", "kurtosis"):
        columns[key] = f"{{closed_form[{key}]:.4g}}"
        columns[f"measured {key}"] = f"{{measured[{key}]:.4g}}"
    caption = (
        f"Moments for x ~ N(0, s^2) in closed form, and measured on {samples:,} values;\n"
        "the kurtosis of a normal value is 3."
    )
    return table(caption, columns, result["moments"])


def draw_functions(
    path: Path, x: np.ndarray, curves: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
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
    """3.3's table of costs: a row a shape, and one of all activations of the network."""
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
        f"Forward + backward in ms, {images} images of 224 px, fp32, channels_last, {device};\n"
        f"median of {repeats}. where: f as torch.where(x > 0, x * x, 0.2 * x). memory: peak, ours"
        " over where's."
    )
    return table(caption, columns, rows)


def overflow_warning(name: str, forecast: Mapping, largest: float) -> str:
    """The warning before the training of a network that starts beyond fp16's range."""
    return (
        f"warning: overflow forecast: {name} starts with values up to {forecast['peak']:.2g} in"
        f" {forecast['module']}, beyond fp16's largest {largest:.3g} from {forecast['beyond_fp16']}"
        " on: within a few steps they may leave bf16 and fp32 too; try --residual branch, or"
        " --diagnose to see where"
    )


def forecast_table(result: Mapping, tag: str) -> str:
    """3.4's table of the largest values before the first step, a row a network."""
    rows = []
    for name, forecast in result["forecast"].items():
        beyond = forecast["beyond_fp16"]
        verdict = f"beyond fp16 from {beyond} on" if beyond else "within fp16"
        rows.append({"network": name, **forecast, "verdict": verdict})
    columns = {"network": "{network}", "stem": "{blocks[maxpool][peak]:.3g}"}
    columns |= {"largest": "{peak:.3g}", "in": "{module}", "logits": "{blocks[fc][peak]:.3g}"}
    columns["forecast"] = "{verdict}"
    columns["dead from"] = "{dead_from}"
    caption = (
        "Overflow forecast, before the first step: largest |output| of any module of new networks"
        f"\nfor one batch; {printable(tag)}; the pass itself in fp32.\n"
        "resnet36_sum: f after the sums (assumed). resnet34_f: ResNet-34 with f for its ReLUs."
    )
    return table(caption, columns, rows)


def changes_table(result: Mapping, last_steps: int, recipe: str, tag: str) -> str:
    """3.4's table of the changes to the report's training by the recipe named, a row a change."""
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
        "One change at a time to f after the sums, by a recipe that the report does not name (both"
        " assumed);\nin brackets, two changes, and the report's other network."
        f"\n{recipe}, batch {result['recipe']['batch_size']}.\n"
        f"{result['steps']} steps, or until a value is not finite; same seed, same images; loss:"
        f" mean of the last {last_steps} steps,\nof equal logits {result['chance_loss']:.3f}."
        f" {printable(tag)}."
    )
    return table(caption, columns, rows)


def doctor_table(result: Mapping, ranges: Mapping[str, float], recipe: str, tag: str) -> str:
    """3.4's table of the first values beyond each range, of each training that was watched.

    `ranges` has the largest value of each precision; `recipe` is the report's, in words.
    """
    flags, rows = result["recipe"], []
    for name, beyond in result["beyond_range"].items():
        for precision, largest in ranges.items():
            row = {"network": name, "precision": precision, "largest": largest}
            rows.append({**row, **beyond.get(precision, {})})
        row = {"network": name, "precision": "fp32: a dead layer", "largest": ranges["fp32"]}
        if dead := result["dead"][name]:
            row |= {**dead, "direction": "variance"}
        rows.append(row)
    columns = {"network": "{network}", "range of": "{precision}", "largest": "{largest:.3g}"}
    columns |= {"step": "{step}", "module": "{module}", "direction": "{direction}"}
    caption = (
        "The first value, output or gradient, or a batch's variance (a dead layer), beyond the"
        f" range\nof a precision, in {result['steps']} steps or until the loss is not finite."
        " resnet36_sum: f after the sums (assumed),\nresnet36_report_recipe: f off the sums; both"
        f" by {recipe}.\nThe other as the flags have it, f: {result['residual']},"
        f" {flags['optimizer']} {flags['learning_rate']:g}, {flags['precision']}."
        f" {printable(tag)}."
    )
    return table(caption, columns, rows)


def draw_doctor(
    path: Path,
    curves: Mapping[str, Mapping[int, list[float]]],
    blocks: Sequence[str],
    ranges: Mapping[str, float],
    tag: str,
) -> None:
    """3.4's figure of the peaks by depth, log scale: `curves[network][step]` has one a block.

    The first step is solid. What is not finite lies at the top.
    """
    title = "The largest output by depth, in the first and the last step watched"
    settings = f"After and off the sums by SGD at 0.1, the third network as it was trained. {tag}"
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
