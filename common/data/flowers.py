"""Drawn flowers: an embedded data set that needs no download and is the same on every machine.

102 species, each a form (number and shape of petals, eye) in a colour; no two of the first ten
share either. Pose, size, place, light, leaves and the blurred ground are random.

    python -m common.data.flowers --out data/flowers              10 classes, 20 images a class
    python -m common.data.flowers --out data/flowers --classes 102 --short-side 128
"""

import functools
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFilter

from common import cli
from common.errors import UserError, guard
from common.files import make_folder
from common.job import progress, say

NUM_CLASSES = 102
SPLITS = ("train", "val", "test")
# (width, height) in px, about as often as in Oxford Flowers-102.
FULL_SIZES_PX = [(667, 500)] * 3 + [(752, 500)] * 2 + [(625, 500), (500, 667), (500, 752)]


class Form(NamedTuple):
    """The build of a flower of radius 1; half_width and bend are in petal lengths."""

    name: str
    petals: int
    shape: str
    half_width: float
    eye_radius: float
    eye_colour: str
    whorls: int = 1
    bend: float = 0


# Class k has form k % 11 and colour k % 10 of these: 110 pairs before the first comes again.
FORMS = (
    Form("daisy", 13, "narrow", 0.13, 0.27, "#f6c52c"),
    Form("poppy", 4, "ruffled", 0.66, 0.20, "#3a2d42"),
    Form("lily", 6, "pointed", 0.23, 0.10, "#c6d256"),
    Form("sunflower", 17, "pointed", 0.14, 0.46, "#6e4628"),
    Form("flax", 5, "round", 0.46, 0.13, "#eec04a"),
    Form("periwinkle", 5, "pinwheel", 0.40, 0.09, "#f5efd8", bend=0.28),
    Form("primrose", 5, "notched", 0.48, 0.16, "#f0d848"),
    Form("trillium", 3, "pointed", 0.40, 0.13, "#e9c93c"),
    Form("dahlia", 11, "pointed", 0.23, 0.12, "#8d3442", whorls=3),
    Form("cosmos", 8, "fringed", 0.30, 0.19, "#f2b92e"),
    Form("starflower", 5, "star", 0.30, 0.15, "#dfb82e"),
)
COLOURS = {  # of the petal, its edge and its throat
    "white": ("#fbfaf6", "#d9dce8", "#eef0d0"),
    "red": ("#de2a28", "#a8161e", "#74101a"),
    "orange": ("#fb8420", "#e05a14", "#fcb848"),
    "yellow": ("#ffe03c", "#f2bc1e", "#f6b428"),
    "azure": ("#86d4f6", "#4ea8de", "#f0fafe"),
    "blue": ("#3f6ce4", "#274abc", "#c4d6fc"),
    "violet": ("#6c38b4", "#4c268c", "#b08ee0"),
    "lilac": ("#c8a6ea", "#a37fd2", "#f0e4fb"),
    "magenta": ("#c8248c", "#961a68", "#ec92c8"),
    "pink": ("#f682b0", "#de5890", "#fcc8dc"),
}
LEAF = ("#dcdcdc", "#b4b4b4", "#ffffff")  # times one of the greens
GREENS = ("#3a702c", "#5c943a", "#265834", "#789842", "#4a8054", "#68743a")
# Dark and light of what lies far behind.
GROUNDS = ("#1a3a1c #6e9c4a", "#142e26 #5c8a60", "#342e1e #96865c", "#304222 #acb662")
# Half outlines from base to tip: along the petal in its lengths, across in its half widths.
# A corner stays sharp where its point stands twice.
SHAPES = {
    "narrow": ([0, 0.2, 0.6, 0.92, 1.02], [0.5, 0.8, 1, 0.9, 0.35]),
    "ruffled": ([0, 0.4, 0.55, 0.75, 0.9, 1, 0.9, 1.06], [0.2, 0.7, 1.1, 0.9, 1.1, 0.7, 0.4, 0]),
    "pointed": ([0, 0.25, 0.5, 0.75, 1, 1], [0.3, 0.8, 1.1, 0.7, 0, 0]),
    "round": ([0, 0.25, 0.5, 0.85, 1.02], [0.15, 0.5, 0.95, 1.05, 0.4]),
    "notched": ([0, 0.3, 0.65, 0.93, 1.06, 0.84, 0.84], [0.12, 0.5, 1, 1, 0.5, 0, 0]),
    "fringed": ([0, 0.4, 0.8, 1, 1, 0.8, 1.05, 1.05, 0.8], [0.1, 0.5, 1, 1, 1, 0.6, 0.4, 0.3, 0]),
    "pinwheel": ([0, 0.25, 0.6, 0.9, 0.9, 1], [0.2, 0.45, 0.9, 1, 0.9, 0.3]),
    "star": ([0, 0.12, 0.35, 0.7, 1, 1], [0.75, 1.1, 0.85, 0.33, 0, 0]),
    "leaf": ([0, 0.1, 0.3, 0.6, 1, 1], [0, 0.3, 1, 0.95, 0, 0]),
}

# Directions (2, TURN) from a table rounded to 9 digits, and no matrix products or rng.uniform:
# the last bit of a sine, and of a sum of products, differs between machines.
TURN = 4096
_ANGLES = [2 * math.pi * k / TURN for k in range(TURN)]
_DIRECTIONS = np.array([[round(f(angle), 9) for angle in _ANGLES] for f in (math.cos, math.sin)])


class Flower(NamedTuple):
    """A drawn picture of a flower, where the flower is in it, and its class."""

    image: np.ndarray  # uint8 (height, width, 3)
    mask: np.ndarray  # bool (height, width), the flower's petals and eye
    label: int  # the class, from 0


class _Sprite(NamedTuple):
    """A petal or leaf of unit length: polygons filled one over the other, the silhouette first."""

    points: np.ndarray  # (2, polygons, vertices)
    colours: np.ndarray  # (polygons, 3)


def class_names(num_classes: int = NUM_CLASSES) -> list[str]:
    """Unique names of the first classes in the order of labels, such as "white daisy"."""
    if num_classes > NUM_CLASSES:
        raise UserError(f"classes {num_classes}: there are {NUM_CLASSES} classes of drawn flowers")
    colours, forms = list(COLOURS), [form.name for form in FORMS]
    return [f"{colours[k % len(colours)]} {forms[k % len(forms)]}" for k in range(num_classes)]


def full_size(seed: int, split: str, index: int) -> tuple[int, int]:
    """(width, height) in px of a picture at full resolution, without drawing it."""
    return FULL_SIZES_PX[_generator(seed, split, index).integers(len(FULL_SIZES_PX))]


def draw_flower(
    seed: int,
    split: str,
    index: int,
    num_classes: int = NUM_CLASSES,
    short_side_px: int | None = None,
) -> Flower:
    """Draw picture `index` of a split, which has the label index % num_classes.

    With `short_side_px`, at least 16, the same scene is drawn at that resolution, else at
    `full_size`: the two agree but for sensor noise, which is per pixel.
    """
    label = index % num_classes
    rng = _generator(seed, split, index)
    full_px = FULL_SIZES_PX[rng.integers(len(FULL_SIZES_PX))]
    short_px = short_side_px or min(full_px)
    size_px = tuple(round(side * short_px / min(full_px)) for side in full_px)
    supersample = 3 if short_px <= 128 else 2
    canvas_px = tuple(supersample * side for side in size_px)
    canvas = _draw_ground(rng, size_px).resize(canvas_px, Image.Resampling.NEAREST)
    mask = Image.new("L", canvas_px)
    _paint_plant(rng, canvas, mask, label)
    image = _photograph(rng, canvas.reduce(supersample))
    return Flower(image, np.asarray(mask.reduce(supersample)) >= 128, label)


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    words = [seed, SPLITS.index(split), index]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def _between(rng: np.random.Generator, low: float, high: float, *shape: int):
    """Uniform in [low, high): an array of that shape, or a number where there is none."""
    uniform = rng.random(shape) if shape else rng.random()
    return low + (high - low) * uniform


def _random_directions(rng: np.random.Generator, n: int) -> np.ndarray:
    return _DIRECTIONS[:, rng.integers(TURN, size=n)]


def _mix(a, b, weight):
    """Two arrays, or colours by their names, mixed with b's weight in [0, 1]."""
    a, b = (ImageColor.getrgb(ink) if isinstance(ink, str) else ink for ink in (a, b))
    return np.asarray(a) * (1 - weight) + np.asarray(b) * weight


@functools.cache
def _sprite(shape: str, half_width: float, shades: tuple[str, str, str], steps: int) -> _Sprite:
    """A dark rim, gradients from the edge's colour to the petal's and to the throat's, veins."""
    petal, edge, throat = shades
    half = np.array(SHAPES[shape], float) * [[1], [half_width]]
    outline = np.concatenate([half, half[:, ::-1] * [[1], [-1]]], axis=1)
    for _ in range(2):  # corners cut (Chaikin 1974)
        pairs = [_mix(outline, np.roll(outline, -1, 1), weight) for weight in (0.25, 0.75)]
        outline = np.stack(pairs, axis=2).reshape(2, -1)
    layers = [(outline, _mix(edge, "black", 0.18))]
    for weight in np.linspace(0, 1, steps):
        size = _mix([[0.98], [0.94]], [[0.82], [0.6]], weight)
        layers.append((outline * size, _mix(edge, petal, weight)))
    for aside in (-0.4, 0, 0.4) if steps > 1 else (0,):
        along, across = outline * [[0.55], [0.05]] + [[0.3], [0]]
        vein = np.stack([along, across + aside * half_width * along])
        layers.append((vein, _mix(petal, edge, 0.6)))
    for weight in np.linspace(1 / steps, 1, steps):
        size = _mix([[0.54], [0.56]], [[0.22], [0.3]], weight)
        layers.append((outline * size, _mix(petal, throat, weight)))
    polygons, colours = zip(*layers, strict=True)
    return _Sprite(np.stack(polygons, axis=1), np.array(colours))


def _copies(sprite: _Sprite, base, direction, length, bend) -> np.ndarray:
    """Points (2, n, polygons, vertices) of n copies: scaled, bent sideways, turned and moved.

    base and direction are (2, n); length and bend (in lengths) are (n,).
    """
    along, across = sprite.points[:, None] * length[:, None, None]
    across = across + sprite.points[0] ** 2 * (bend * length)[:, None, None]
    cos, sin = direction[:, :, None, None]
    turned = np.stack([along * cos - across * sin, along * sin + across * cos])
    return turned + base[:, :, None, None]


def _paint(image: Image.Image, sprite: _Sprite, points, tints, mask=None) -> None:
    """Fill the polygons of a sprite's copies, and their silhouettes in a mask.

    points: as of `_copies`, in short sides from the picture's centre. tints: (n, 1 or 3).
    """
    fills = np.minimum(tints[:, None] * sprite.colours, 255).astype(int)
    inks = (fills * [1, 2**8, 2**16]).sum(axis=2).tolist()  # a number each, as Pillow keeps them
    centre = (np.array(image.size) - 1)[:, None, None, None] / 2
    pixels = np.rint(points * min(image.size) + centre)
    corners = np.moveaxis(pixels, 0, 3).astype(np.float32, order="C")  # and so are these
    draw = ImageDraw.Draw(image)
    draw_mask = None if mask is None else ImageDraw.Draw(mask)
    for polygons, colours in zip(corners, inks, strict=True):
        for polygon, colour in zip(polygons, colours, strict=True):
            draw.polygon(polygon, fill=colour)
        if draw_mask is not None:
            draw_mask.polygon(polygons[0], fill=255)


def _paint_leaves(rng: np.random.Generator, image, base, direction, lengths, shape, slimness):
    """Green leaves or blades at base (2, n), their lengths between two numbers of short sides."""
    n, sprite = base.shape[1], _sprite(shape, slimness, LEAF, 1)
    length, bend = _between(rng, *lengths, n), _between(rng, -0.25, 0.25, n)
    greens = np.array([ImageColor.getrgb(GREENS[k]) for k in rng.integers(len(GREENS), size=n)])
    tints = greens / 255 * _between(rng, 0.8, 1.2, n)[:, None]
    _paint(image, sprite, _copies(sprite, base, direction, length, bend), tints)


def _draw_ground(rng: np.random.Generator, size_px: tuple[int, int]) -> Image.Image:
    """Ground and leaves out of focus."""
    cells = _mix(*GROUNDS[rng.integers(len(GROUNDS))].split(), rng.random((5, 7, 1)))
    cells = np.clip(cells + _between(rng, -14, 14, 5, 7, 3), 0, 255).astype(np.uint8)
    picture = Image.fromarray(cells).resize(size_px, Image.Resampling.BICUBIC)
    reach = np.array(size_px)[:, None] / min(size_px) * 0.55
    for shape, n, lengths, slimness in (
        ("leaf", rng.integers(5, 20), (0.15, 0.45), 0.2),
        ("narrow", rng.integers(2, 10), (0.4, 1.2), 0.025),
    ):
        base, direction = reach * _between(rng, -1, 1, 2, n), _random_directions(rng, n)
        _paint_leaves(rng, picture, base, direction, lengths, shape, slimness)
    blur_px = round(_between(rng, 0.012, 0.03) * min(size_px), 3)
    return picture.filter(ImageFilter.GaussianBlur(blur_px))


def _paint_plant(rng: np.random.Generator, canvas: Image.Image, mask: Image.Image, label: int):
    """A stem, leaves, and a flower beside the centre, most of it in the central square."""
    form, shades = FORMS[label % len(FORMS)], list(COLOURS.values())[label % len(COLOURS)]
    radius = _between(rng, 0.24, 0.33)
    centre = _random_directions(rng, 1) * _between(rng, 0.17, 0.55 - 0.85 * radius)
    down = _DIRECTIONS[:, [TURN // 4 + rng.integers(-TURN // 12, TURN // 12)]]
    _paint_leaves(rng, canvas, centre, down, (1, 1.3), "narrow", 0.016)
    outward = _random_directions(rng, rng.integers(1, 6))
    base, lengths = centre + outward * radius * 0.4, (0.9 * radius, 1.4 * radius)
    _paint_leaves(rng, canvas, base, outward, lengths, "leaf", 0.2)

    petal = _sprite(form.shape, form.half_width, shades, 4)
    whorls = [(form.petals, 0.04, 1 - 0.25 * k, form.bend, petal) for k in range(form.whorls)]
    eye, floret = form.eye_radius, _sprite("round", 0.5, (*[form.eye_colour] * 2, "#fff0b0"), 1)
    whorls += [(n, at * eye, 0.45 * eye, 0, floret) for n, at in ((13, 0.6), (8, 0.3), (4, 0))]
    first, light = rng.integers(TURN), _random_directions(rng, 1)
    tilt, shortening = _random_directions(rng, 1)[:, :, None, None], _between(rng, 0, 0.25)
    for k, (n, start, size, bend, sprite) in enumerate(whorls):
        turns = first + (np.arange(n) + 0.5 * k + _between(rng, -0.1, 0.1, n)) * TURN / n
        direction = _DIRECTIONS[:, np.rint(turns).astype(int) % TURN]
        length, bends = _between(rng, 0.92, 1.06, n) * size, _between(rng, -0.06, 0.06, n) + bend
        points = _copies(sprite, direction * start, direction, length, bends)
        points = points - (points * tilt).sum(axis=0) * tilt * shortening
        tints = _between(rng, 0.95, 1.03, n) + 0.1 * (direction * light).sum(axis=0)
        _paint(canvas, sprite, points * radius + centre[:, :, None, None], tints[:, None], mask)


def _photograph(rng: np.random.Generator, image: Image.Image) -> np.ndarray:
    """Light and sensor noise of a camera, uint8 (height, width, 3)."""
    brightness, cast = _between(rng, 0.75, 1.2), _between(rng, 0.93, 1.07, 3)
    gains = 128 * brightness * cast * _between(rng, 0.85, 1.15, 2, 2, 1)
    light = Image.fromarray(gains.astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    lit = (np.asarray(image, np.uint16) * np.asarray(light) >> 7).astype(np.int16)
    noise = int(rng.integers(1, 6))
    lit += rng.integers(-noise, noise + 1, lit.shape, dtype=np.int16)
    return np.clip(lit, 0, 255).astype(np.uint8)


def write_folders(
    folder: Path,
    num_classes: int,
    images_per_class: int,
    short_side_px: int | None,
    seed: int,
    splits: Sequence[str] = SPLITS,
) -> None:
    """Write class folders of drawn flowers: SPLIT/CLASS/00000.png, masks/SPLIT/CLASS/00000.png.

    Each split has `images_per_class` pictures of every class, as `draw_flower` draws them.
    """
    names = [name.replace(" ", "_") for name in class_names(num_classes)]
    pictures = list(itertools.product(splits, range(num_classes * images_per_class)))
    for split, index in progress(pictures, desc="pictures"):
        flower = draw_flower(seed, split, index, num_classes, short_side_px)
        place = f"{split}/{flower.label:03d}_{names[flower.label]}/{index // num_classes:05d}.png"
        for path, pixels in (folder / place, flower.image), (folder / "masks" / place, flower.mask):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def main() -> None:
    """Write the class folders that the command line asks for."""
    parser = cli.Parser(__doc__)
    add, short_side = parser.add, "(default: full resolution, 500)"
    add("--out", type=cli.path, required=True, help="new or empty folder")
    add("--classes", type=cli.at_least(1, NUM_CLASSES), default=10, help="1 to 102")
    add("--images-per-class", type=cli.positive, default=20, help="images a class in each split")
    add("--short-side", type=cli.at_least(16, 4000), metavar="PX", help=short_side)
    add("--seed", type=cli.seed, default=0, help="seed of all randomness")
    args = parser.parse_args()
    if any(make_folder(args.out).iterdir()):
        raise UserError(f"{args.out}: not an empty folder; choose another --out")
    write_folders(args.out, args.classes, args.images_per_class, args.short_side, args.seed)
    say(f"-> {args.out}: {', '.join(SPLITS)}, masks")


if __name__ == "__main__":
    sys.exit(guard(main))
