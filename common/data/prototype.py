"""The prototype data set that flags ask for, from class folders, drawn flowers or a manifest."""

import argparse
from pathlib import Path

from common import cli
from common.data import manifest
from common.data.images import say_left_out
from common.data.packed import packed_side_px
from common.data.sets import SPLITS, embedded_folders
from common.errors import UserError

SYNTHETIC_CLASSES = 10
# Defaults of the flags that a manifest replaces.
DEFAULTS = {"classes": None, "per_class": 600, "allow_fewer": False, "split": (0.7, 0.15, 0.15)}


def add_flags(parser: cli.Parser) -> None:
    """Add the flags that say what is drawn from where."""
    add, parts = parser.add, len(SPLITS)
    source = "folder of class folders, or synthetic: embedded drawn flowers"
    add("--data", type=cli.word_or_path, metavar="DIR", help=source)
    classes = "number of classes to draw (default: 500, or all if fewer; synthetic: 10)"
    add("--classes", type=cli.at_least(2, 100_000), help=classes)
    per_class = {"type": cli.at_least(parts, 1_000_000), "default": DEFAULTS["per_class"]}
    add("--per-class", **per_class, help="images per class, at least one per split")
    add("--allow-fewer", action="store_true", help="keep smaller classes too (default: no)")
    add("--split", type=cli.fraction, nargs=parts, metavar=tuple(map(str.upper, SPLITS)),
        default=DEFAULTS["split"], help="fractions of each class per split")  # fmt: skip
    add("--manifest", type=cli.path, metavar="FILE", help="reuse this data set (default: draw one)")


def check_flags(args: argparse.Namespace, parts: list[str]) -> None:
    """Refuse flags that can't work or that a manifest replaces; `parts` are those needing data."""
    if min(args.split) <= 0 or abs(sum(args.split) - 1) > 1e-6:
        shares = " ".join(f"{fraction:g}" for fraction in args.split)
        raise UserError(
            f"--split {shares}: give three fractions above 0 that sum to 1, such as 0.7 0.2 0.1"
        )
    if parts and not args.data:
        raise UserError(
            f"part {parts[0]} needs --data: give a folder of class folders, or synthetic for the"
            " embedded data, or name other parts"
        )
    if not args.manifest or args.data == "synthetic":
        return
    for name, default in DEFAULTS.items():
        if getattr(args, name) != default:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: the data set of --manifest is already drawn; leave out one")


def draw(args: argparse.Namespace) -> manifest.Manifest:
    """Draw the data set or read it by --manifest, verify every image, and say what is left out."""
    root = Path(args.data)
    if args.data == "synthetic":
        classes, side_px = args.classes or SYNTHETIC_CLASSES, packed_side_px(args.image_size)
        root = embedded_folders(args.cache, classes, args.per_class, side_px, args.seed)
    if args.manifest:
        return manifest.read(args.manifest, root)
    how = (args.classes, args.per_class, args.split, args.seed, args.allow_fewer)
    written = (args.out / "problem3", args.cache)  # for someone who works in the data's folder
    drawn = manifest.draw(root, *how, written)
    say_left_out([*drawn.left_out, *drawn.quarantined], str(root))
    return drawn


def name(args: argparse.Namespace) -> str:
    """The name of the data in tables and figures."""
    if args.data == "synthetic":
        return f"EMBEDDED DRAWN FLOWERS, {args.classes or SYNTHETIC_CLASSES} classes"
    if not args.data:
        return "no data"
    folder = Path(args.data).absolute()
    # "train" alone would not name the data.
    return f"{folder.parent.name}/{folder.name}" if folder.name in SPLITS else folder.name
