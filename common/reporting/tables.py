"""Text tables from results: a column is a format string over a record."""

import math
import string
from collections.abc import Iterable, Mapping, Sequence

from tabulate import tabulate

from common.job import printable

FORMATTER = string.Formatter()


def table(caption: str, columns: Mapping[str, str], records: Iterable[Mapping]) -> str:
    """An aligned text table under its caption, a row a record.

    `columns` maps a header to a format string over the record's keys, such as
    "{test_top1_low:.2f} - {test_top1_high:.2f}"; see `cell`.
    """
    rows = [[cell(template, record) for template in columns.values()] for record in records]
    return f"{caption}\n{aligned(list(columns), rows)}\n"


def cell(template: str, record: Mapping) -> str | None:
    """A format string filled from a record; None where a value that it names is missing.

    A value is missing where its key is, where it is None, and where it is not finite, which
    results.json stores as null. What a terminal or a line would take for more than text is escaped.
    """
    for _, field, _, _ in FORMATTER.parse(template):
        if field is None:  # text after the last value
            continue
        try:
            value, _ = FORMATTER.get_field(field, (), record)
        except (KeyError, IndexError, TypeError):  # TypeError: a key of None
            return None
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return None
    return printable(template.format_map(record))


def aligned(headers: list[str], rows: list[list[str | None]]) -> str:
    """An aligned text table of cells as they shall appear; None is shown as "-"."""
    align = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(rows, headers, missingval="-", disable_numparse=True, colalign=align)


def differences_table(differences: Sequence[Mapping], tag: str) -> str:
    """A table of differences in test top-1 between networks, paired by seed and image."""
    columns = {"network": "{a}", "less": "{b}", "points": "{mean:+.2f}"}
    columns["95 % interval"] = "{low:+.2f} - {high:+.2f}"
    caption = (
        "Difference of test top-1 in points, paired by seed and image; the interval resamples seeds"
        f"\nand images. {printable(tag)}."
    )
    return table(caption, columns, differences)
