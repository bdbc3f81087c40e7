"""A result as tables: every value that a nest of dicts and lists holds, each in one place."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from common.job import printable

MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class Table:
    """Records of one kind under the path of their place, such as ("networks", "resnet36").

    columns: names, the first that of the records. rows: a cell a column, None where a record has no
    such value. depth: dicts and lists around it.
    """

    path: tuple[str, ...]
    columns: list[str]
    rows: list[list]

    @property
    def is_main(self) -> bool:
        """Whether it stands near the top of the result and is small enough to be read at once."""
        return len(self.path) == 1 and len(self.rows) <= 20 and len(self.columns) <= 14


def is_plain(value) -> bool:
    """Whether a value has a cell of its own: a scalar, or a list of them."""
    if isinstance(value, (list, tuple)):
        return all(is_plain(item) for item in value)
    return not isinstance(value, Mapping)


def shown(value) -> str:
    """A value as a reader sees it: numbers with four digits, whole ones with all of theirs."""
    if isinstance(value, (list, tuple)):
        nested = any(isinstance(item, (list, tuple)) for item in value)
        return ("; " if nested else ", ").join(map(shown, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: MISSING, True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float) and math.isfinite(value):
        if value and not 1e-3 <= abs(value) < 1e5:
            return f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e15 else f"{value:,.0f}"
        return f"{value:.4g}"
    return printable(str(value))


def tables(result: Mapping) -> tuple[dict, list[Table]]:
    """A result's plain values by their dotted names, and its other values as tables."""
    plain, found = {}, []
    for key, value in result.items():
        _take(key, value, (), plain, found)
    return plain, found


def _take(name: str, value, path: tuple[str, ...], plain: dict, found: list[Table]) -> None:
    """Put a value into `plain` under a dotted name, or what it holds into `found`."""
    key = name.rsplit(".", 1)[-1]
    if is_plain(value):
        plain[name] = value
    elif records := dict(_records(value)):
        found.append(_table((*path, key), records, below := []))
        found += below
    else:
        for inner, item in value.items():
            _take(f"{name}.{inner}", item, (*path, key), plain, found)


def _records(value) -> Iterator[tuple[str, Mapping]]:
    """The records of a list of dicts, by their numbers, or of a dict of at least two dicts."""
    if isinstance(value, Sequence):
        yield from ((str(n), item if isinstance(item, Mapping) else {"value": item})
                    for n, item in enumerate(value, 1))  # fmt: skip
    elif len(value) > 1 and all(isinstance(item, Mapping) for item in value.values()):
        yield from value.items()


def _table(path: tuple[str, ...], records: Mapping, below: list[Table]) -> Table:
    rows = {}
    for name, record in records.items():
        rows[name] = {}
        for key, value in record.items():
            _take(key, value, (*path, name), rows[name], below)
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    cells = [[name, *(row.get(key) for key in columns)] for name, row in rows.items()]
    return Table(path, [path[-1], *columns], cells)
