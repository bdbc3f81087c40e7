"""The README's tables and numbers, made from the published results.

    python -m common.reporting.page --readme

rewrites README.md between each `<!-- begin NAME: ... -->` and `<!-- end NAME -->`, from
outputs/published and from the words in claims.json beside this file. In these words
{problem1/1.2/losses/relu5_3/relative:.3f} is a value of a results.json: folder, part, keys, and how
to show it, as in a format string; `:duration` shows seconds in words, `:count` the number of items.
claims.json has

parts: a record a part: part, title, report (what it printed), truth, ours; made_by (folder/part of
    our number), and earlier: the trainings that the call which made it had found already made.
blocks: for each other block its "text", a list of lines, or its "table": {columns: {header: words},
    rows: [{NAME: words that take the place of $NAME in all columns}]}.
"""

import json
import re
import shlex
import string
import sys
from collections.abc import Mapping
from pathlib import Path

from common import files, job
from common.cli import Parser
from common.errors import UserError, guard
from common.reporting import results

PUBLISHED = results.ROOT / "outputs" / "published"
README = results.ROOT / "README.md"
CLAIMS = Path(__file__).with_name("claims.json")
MADE_BY = "made by python -m common.reporting.page --readme"
BLOCK = re.compile(r"(<!-- begin (\w+)[^>]*-->\n)(.*?)(<!-- end \2 -->)", re.DOTALL)
REFERENCE = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")
# What GitHub's Markdown takes for more than text; an underscore between letters it leaves alone.
MARKUP = re.compile(r"[\\`*\[\]|~<>&#@]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.")
NO_FOLDERS = ("synthetic", "flowers102")  # values of --data that a reader types as they are
PARTS_HEADERS = ["part", "the report printed", "what is true", "ours", "command", "time"]


# ------------------------------------------------------------------------------------ references


def read_published(folder: Path) -> dict:
    """All results in a folder, as nested dicts: {folder: {part: result}, file name: content}.

    Raises:
        UserError: a results.json is not this project's.
    """
    tree = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            tree[path.name] = read_published(path)
        elif path.suffix == ".json" and path.stem != "results":
            tree[path.stem] = files.load_json(path)
    return tree | results.read(folder)["parts"]


def look_up(published: Mapping, reference: str):
    """The value at a reference such as problem3/3.4/single_changes/0/last_loss.

    None where it, or what it would be in, is null.

    Raises:
        UserError: there is none.
    """
    value = published
    for key in reference.split("/"):
        if value is None:
            return None
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, ValueError, TypeError):
            raise UserError(
                f"outputs/published has no {reference}: {key!r} is missing; mend claims.json, or"
                " publish that part again"
            ) from None
    return value


def fill(words: str, published: Mapping) -> str | None:
    """The words with each {reference:format} as its value; None where a value is null.

    Raises:
        UserError: a reference that leads nowhere, or a format that does not suit its value.
    """
    texts = {}
    for reference, how in REFERENCE.findall(words):
        value = look_up(published, reference)
        if value is None:
            return None
        try:
            texts[reference, how] = shown(value, how)
        except (ValueError, TypeError):
            raise UserError(f"{reference} is {value!r}, which {how!r} does not suit") from None
    return REFERENCE.sub(lambda match: texts[match.groups("")], words)


def shown(value, how: str) -> str:
    """A value as a format specification has it, or as `duration` or `count` do.

    Names, which may hold anything, become text that the page shows as it is.
    """
    if how == "duration":
        return duration(value)
    if how == "count":
        return f"{len(value):,}"
    if isinstance(value, (int, float)):
        return format(value, how).replace("%", " %")
    return MARKUP.sub(lambda match: f"&#{ord(match[0])};", job.printable(format(value, how)))


def duration(seconds: float) -> str:
    """Seconds in words: "44 s", "25 min" or "1.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# ----------------------------------------------------------------------------------- the parts


def parts_table(parts: list[dict], published: Mapping) -> list[str]:
    """One row a part, from its record in claims.json and from the provenance of its result."""
    rows = []
    for record in parts:
        provenance = look_up(published, f"{record['made_by']}/provenance")
        command = reader_command(provenance["command"], record["part"])
        seconds = part_seconds(record, published)
        words = [f"**{record['part']}** {record['title']}"]
        words += [record[key] for key in ("report", "truth", "ours")]
        rows.append([*_filled(words, published), code(command), duration(seconds)])
    return markdown_table(PARTS_HEADERS, rows)


def code(text: str) -> str:
    """Text as code in a cell of a Markdown table."""
    text = job.printable(text).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if fence == "`" else f"{fence} {text} {fence}"


def reader_command(command: str, part: str) -> str:
    """A published command for one part, as a reader types it: with folders of their own."""
    python, script, *words = shlex.split(command)
    while words and not words[0].startswith("-"):
        words.pop(0)  # the parts that were run in one go
    for flag in ("--data-root", "--data"):
        if flag in words and words[words.index(flag) + 1] not in NO_FOLDERS:
            words[words.index(flag) + 1] = "DIR"
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return shlex.join([python, script, part, *words])


def part_seconds(record: Mapping, published: Mapping) -> float:
    """Seconds that a part takes from nothing.

    Those of the call that made it, and of the trainings that the call had found already made.
    """
    seconds = look_up(published, f"{record['made_by']}/provenance/call_seconds")
    for reference in record.get("earlier", []):
        seconds += training_seconds(look_up(published, reference))
    return seconds


def training_seconds(value) -> float:
    """Seconds of all runs in a nest of results: the dicts that have a seed and training_seconds."""
    if isinstance(value, Mapping):
        if {"seed", "training_seconds"} <= value.keys():
            return value["training_seconds"]
        return sum(training_seconds(item) for item in value.values())
    return sum(map(training_seconds, value)) if isinstance(value, list) else 0


# ------------------------------------------------------------------------------------ the blocks


def markdown_table(headers: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def table_block(block: Mapping, published: Mapping) -> list[str]:
    """The lines of a "table" of claims.json; a cell of which a value is null is "-"."""
    templates = [string.Template(words) for words in block["columns"].values()]
    rows = [[words.substitute(row) for words in templates] for row in block["rows"]]
    cells = [[fill(words, published) or "-" for words in row] for row in rows]
    return markdown_table(list(block["columns"]), cells)


def _filled(lines: list[str], published: Mapping) -> list[str]:
    """The lines with all values in them.

    Raises:
        UserError: as `fill`, and a value that is null.
    """
    filled = [fill(line, published) for line in lines]
    if None in filled:
        raise UserError(f"a value is null in: {lines[filled.index(None)]}")
    return filled


def make_blocks(claims: Mapping, published: Mapping) -> dict[str, list[str]]:
    """The lines of every block, by its name."""
    blocks = {"parts": parts_table(claims["parts"], published)}
    for name, block in claims["blocks"].items():
        if "text" in block:
            blocks[name] = _filled(block["text"], published)
        else:
            blocks[name] = table_block(block["table"], published)
    return blocks


def rewritten(readme: str, claims: Mapping, published: Mapping) -> str:
    """The README's text with its marked blocks made again.

    Raises:
        UserError: a reference that leads nowhere, or a block that is not in both README and claims.
    """
    blocks = make_blocks(claims, published)
    marked = {match[2] for match in BLOCK.finditer(readme)}
    odd = marked.symmetric_difference(blocks)
    if odd:
        raise UserError(
            f"README.md and claims.json do not both have the block(s) {', '.join(sorted(odd))}"
        )

    def made_again(match: re.Match) -> str:
        _, name, _, end = match.groups()
        return "\n".join([f"<!-- begin {name}: {MADE_BY} -->", *blocks[name], end])

    return BLOCK.sub(made_again, readme)


def main() -> None:
    parser = Parser(__doc__)
    parser.add(
        "--readme", action="store_true", required=True, help="rewrite the blocks of README.md"
    )
    parser.parse_args()
    claims = json.loads(CLAIMS.read_text("utf-8"))
    text = rewritten(README.read_text("utf-8"), claims, read_published(PUBLISHED))
    with files.atomic(README) as temporary:
        temporary.write_text(text, "utf-8")
    job.say(f"-> {README}")


if __name__ == "__main__":
    sys.exit(guard(main))
