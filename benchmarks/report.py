"""What every benchmark leaves behind: its table, printed and kept, and its numbers as JSON."""

from pathlib import Path

from common import files


def keep(folder: Path, name: str, text: str, result: dict) -> None:
    """Print a table and keep it in NAME.txt, and the numbers that it is made of in NAME.json."""
    print(text)
    with files.atomic(folder / f"{name}.txt") as temporary:
        temporary.write_text(text)
    files.save_json(folder / f"{name}.json", result)
