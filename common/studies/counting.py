"""What first passes of new networks come to: the closed form beside them, and how many are dead."""

from collections.abc import Mapping, Sequence


def with_forecast(cases: Sequence[Mapping], border: float) -> list[dict]:
    """First passes with their forecast in closed form.

    Added keys: stem_peak; stage_peak, of the first stage; shortcut_peak, of what the 1x1 shortcut
    after it puts into its batch norm; closed_form_peak, the stem's to the power of 8 where f
    squares each of three sums; forecast_dead, whether the stem's is above the border.
    """
    rows = []
    for case in cases:
        peaks, squared = case["peaks"], case["residual"] == "sum"
        stem = peaks["maxpool"]
        rows.append({
            **case,
            "stem_peak": stem,
            "stage_peak": peaks["layer1.2"],
            "shortcut_peak": peaks["layer2.0.shortcut.0"],
            "closed_form_peak": stem**8 if squared and stem < 1e38 else None,
            "forecast_dead": squared and stem >= border,
        })  # fmt: skip
    return rows


def border_counts(cases: Sequence[Mapping], border: float) -> dict:
    """How many first passes of networks with f after the sum are below and above the border.

    Keys: peak, of the border; below and above, each {"passes", "infinite" (with a variance that is
    not finite), "dead"}; lowest_dead_loss and highest_dead_loss, None without one that is dead.
    """
    squared = [case for case in cases if case["residual"] == "sum"]
    counts = {}
    for side, is_above in (("below", False), ("above", True)):
        passes = [case for case in squared if (case["stem_peak"] >= border) == is_above]
        counts[side] = {
            "passes": len(passes),
            "infinite": sum(case["infinite_from"] is not None for case in passes),
            "dead": sum(case["dead_from"] is not None for case in passes),
        }
    losses = [case["first_loss"] for case in squared if case["dead_from"]]
    ends = {"lowest_dead_loss": min(losses, default=None)}
    return {"peak": border, **counts, **ends, "highest_dead_loss": max(losses, default=None)}


def in_report_setting(cases: Sequence[Mapping], size_px: int, width: float) -> list[Mapping]:
    """The first passes in the report's setting, whatever their pictures and seeds."""
    report = {"image_size_px": size_px, "width": width, "residual": "sum", "init": "pytorch"}
    report["scaling"] = "normalised"
    return [case for case in cases if all(case[key] == report[key] for key in report)]


def dead_by_pictures(cases: Sequence[Mapping]) -> dict[str, dict]:
    """How many networks are dead: {pictures: {images: {"networks", "dead"}}}."""
    counts = {}
    for case in cases:
        of_pictures = counts.setdefault(case["pictures"], {})
        row = of_pictures.setdefault(str(case["images"]), {"networks": 0, "dead": 0})
        row["networks"] += 1
        row["dead"] += case["dead_from"] is not None
    return counts


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
    ends = {"images_least": min(fits), "images_most": max(fits)}
    return {**ends, "classes": 650, "images_per_class": max(fits) / 650}
