"""What benchmarks leave behind: tables, printed and saved, their numbers, and figures."""

import statistics
from collections.abc import Mapping
from pathlib import Path

from benchmarks.bench import OURS, PEAK
from common import files
from common.reporting.plotting import new_figure
from common.reporting.tables import table

BUSY_CORES = 0.2  # at most, kept busy by others, for a measurement to be published


def keep(folder: Path, name: str, text: str, result: dict) -> None:
    """Print a table, and save it in NAME.txt and its numbers in NAME.json."""
    print(text)
    with files.atomic(folder / f"{name}.txt") as temporary:
        temporary.write_text(text)
    files.save_json(folder / f"{name}.json", result)


def comparisons(result: Mapping) -> list[dict]:
    """One row of the table for each comparison of each benchmark."""
    rows = []
    for name, record in result["benchmarks"].items():
        ours = record["numbers"].get(OURS)
        for row in record["rows"]:
            shown = {"name": name, "title": record["title"], **row}
            if ours and record["unit"] == "s":
                shown["seconds"] = statistics.median(ours)
            if row.get("wanted") and "ratio" in row:
                shown["met"] = "yes" if row["ratio"] >= row["wanted"] else "NO"
            shown["told"] = row.get("why_not", row.get("peak"))
            rows.append(shown)
    return rows


def table_text(result: Mapping) -> str:
    """The table of comparisons, and the table of growth if it was measured."""
    busy = max((record["busy"] for record in result["benchmarks"].values()), default=0)
    environment, peaks = result["environment"], result["peaks"]
    rates = ", ".join(f"{name} {rate / 1e9:.1f} G/s" for name, rate in peaks.items())
    caption = (
        f"{environment['processor']}, {environment['threads']} threads,"
        f" {result['device']}; {result['precision_why']}\nThe machine's peaks: {rates}.\n"
        "Ratio: the peer's number over ours, the median of rounds in turn (lowest to highest)."
    )
    if busy > BUSY_CORES:
        caption += f"\nNOT FOR PUBLICATION: others kept {busy:.1f} cores busy."
    if result["quick"]:
        caption += "\nNOT FOR PUBLICATION: --quick, tiny sizes, one round."
    columns = {
        "benchmark": "{title}",
        "against": "{against}",
        "ratio": "{ratio:.2f}",
        "rounds": "{low:.2f} - {high:.2f}",
        "wanted": "{wanted:.2f}",
        "met": "{met}",
        "ours, s": "{seconds:.3g}",
        "": "{told}",
    }
    text = table(caption, columns, comparisons(result))
    if result["growth"]:
        text += "\n" + growth_text(result["growth"])
    return text


def growth_text(growth: Mapping[str, Mapping]) -> str:
    """Seconds and peak memory at each scale, with exponents."""
    records = []
    for name, curve in growth.items():
        for key, form in (("seconds", ".2f"), ("peak_mib", ".0f")):
            values = ", ".join(f"{value:{form}}" for value in curve[key])
            scales = ", ".join(f"{scale}x" for scale in curve["scales"])
            records.append({"name": name, "key": key, "values": values})
            records[-1] |= {"scales": scales, "exponent": curve[f"{key}_exponent"]}
    columns = {"what grows": "{name}", "": "{key}", "scales": "{scales}", "values": "{values}"}
    columns["exponent"] = "{exponent:.2f}"
    return table("Growth with the data; exponent 1 is linear, 0 is none.", columns, records)


def draw_ratios(result: Mapping, path: Path) -> None:
    """Draw every ratio to a peer beside the ratio wanted, on a logarithmic axis."""
    rows = [row for row in comparisons(result) if "ratio" in row and row["against"] != PEAK]
    size, title = (8, 1 + 0.3 * len(rows)), "How many times as fast as its peers"
    settings = "Dots: medians, lines: all rounds, ticks: wanted. "
    settings += result["environment"]["processor"]
    with new_figure(path, title, (1, 1), size, settings) as (_, axes):
        axis = axes[0, 0]
        for place, row in enumerate(reversed(rows)):
            missed = row.get("met") == "NO"
            axis.plot([row["low"], row["high"]], [place, place], color="C3" if missed else "C0")
            axis.plot(row["ratio"], place, "o", color="C3" if missed else "C0")
            if row.get("wanted"):
                axis.plot(row["wanted"], place, "|", color="black", markersize=12)
        names = [f"{row['name']}: {row['against']}" for row in reversed(rows)]
        axis.set_yticks(range(len(rows)), names, fontsize=7)
        axis.axvline(1, color="0.6", linewidth=1)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("peer's time over ours")


def draw_growth(growth: Mapping[str, Mapping], path: Path) -> None:
    """Draw seconds and peak memory by scale, with exponents; seconds on a logarithmic axis."""
    title, settings = "Seconds and peak memory as the data grows", "Each point is a process."
    with new_figure(path, title, (1, 2), (9, 4), settings) as (_, axes):
        for axis, key in zip(axes[0], ("seconds", "peak_mib"), strict=True):
            for name, curve in growth.items():
                label = f"{name}: exponent {curve[f'{key}_exponent']:.2f}"
                axis.plot(curve["scales"], curve[key], "o-", label=label)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_xlabel("times the data")
            axis.legend(fontsize=8)
        axes[0, 0].set_yscale("log", base=2)
        axes[0, 0].yaxis.set_major_formatter("{x:g}")
        axes[0, 0].set_ylabel("seconds")
        axes[0, 1].set_ylim(0, 1.1 * max(max(curve["peak_mib"]) for curve in growth.values()))
        axes[0, 1].set_ylabel("peak MiB")
