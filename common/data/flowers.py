"""Drawn flowers: an embedded data set that needs no download and is the same on every machine.

102 species: 17 forms (petal number and shape, markings) in 6 colourways. The background holds
leaves, buds, berries and butterflies in the petal colours of all species, so that the amount of
a colour does not tell the class. Pose, size, light, blur and leaves in front are random.

    python -m common.data.flowers --out data/flowers              10 classes, 20 images a class
    python -m common.data.flowers --out data/flowers --classes 102 --short-side 128
"""

import argparse
import functools
import itertools
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFilter
from tqdm import tqdm

from common import cli
from common.errors import UserError, guard
from common.files import make_folder
from common.job import progress

NUM_CLASSES = 102
SPLITS = ("train", "val", "test")
MIN_SHORT_SIDE_PX, MAX_SHORT_SIDE_PX = 16, 4000

# (width, height) in px and how often of 20: about Oxford Flowers-102's.
FULL_SIZES = {(667, 500): 8, (752, 500): 5, (625, 500): 1, (500, 667): 4, (500, 752): 2}


class _Form(NamedTuple):
    petals: int
    shape: str
    half_width: float  # of a petal, in petal lengths
    eye: float  # radius in flower radii
    first_colour: int  # index of the colourway that the form has first
    mark: str = ""
    whorls: int = 1


class _Colours(NamedTuple):
    name: str
    petal: tuple[int, int, int]
    edge: tuple[int, int, int]
    throat: tuple[int, int, int]
    eye: tuple[int, int, int]
    mark: tuple[int, int, int]
    eye_name: str
    mark_name: str


# Class k has form k % 17. The first ten share two colours: only the form tells them apart.
FORMS = (
    _Form(5, "round", 0.48, 0.17, 0),
    _Form(13, "narrow", 0.14, 0.27, 0),
    _Form(5, "notched", 0.46, 0.13, 1),
    _Form(6, "pointed", 0.27, 0.15, 1),
    _Form(4, "ruffled", 0.62, 0.20, 1),
    _Form(8, "spoon", 0.25, 0.22, 0),
    _Form(3, "pointed", 0.40, 0.15, 0),
    _Form(7, "fringed", 0.36, 0.12, 1),
    _Form(5, "star", 0.38, 0.14, 0),
    _Form(9, "round", 0.29, 0.20, 1, "ring"),
    _Form(14, "pointed", 0.17, 0.20, 4, whorls=2),
    _Form(5, "narrow", 0.20, 0.15, 5, "stripes"),
    _Form(6, "notched", 0.36, 0.16, 4, "ring"),
    _Form(4, "pointed", 0.44, 0.17, 5, "stripes"),
    _Form(10, "spoon", 0.20, 0.24, 4, "tips"),
    _Form(7, "ruffled", 0.42, 0.15, 5, "tips"),
    _Form(11, "fringed", 0.20, 0.22, 5, "ring", whorls=2),
)
COLOURS = tuple(
    _Colours(name, *map(ImageColor.getrgb, rgb.split()), eye_name, mark_name)
    for name, eye_name, mark_name, rgb in (
        # petal, edge, throat, eye, mark
        ("white", "yellow", "pink", "#faf8f2 #ced2e2 #e2eabe #f6c028 #de4682"),
        ("pink", "yellow", "wine", "#f07aac #ce4282 #fcd0de #face48 #961648"),
        ("yellow", "brown", "red", "#fed636 #e6a418 #f6b022 #6e3e1a #ce3e1e"),
        ("purple", "yellow", "white", "#965cc8 #6a38a0 #ceaae8 #fad04c #f4ecfc"),
        ("red", "black", "yellow", "#de3630 #a81a24 #7e101e #342028 #fccc4c"),
        ("blue", "cream", "navy", "#5c82e0 #3654b4 #ccdafa #fcf4d8 #222a80"),
    )
)

# Half outlines from base to tip: along the petal in its lengths, across in its half widths.
# A corner stays sharp where its point stands twice.
SHAPES = {
    "round": ([0, 0.25, 0.5, 0.85, 1.02], [0.15, 0.5, 0.95, 1.05, 0.4]),
    "narrow": ([0, 0.2, 0.6, 0.92, 1.02], [0.5, 0.8, 1, 0.9, 0.35]),
    "notched": ([0, 0.3, 0.65, 0.93, 1.06, 0.84, 0.84], [0.12, 0.5, 1, 1, 0.5, 0, 0]),
    "pointed": ([0, 0.25, 0.5, 0.75, 1, 1], [0.3, 0.8, 1.1, 0.7, 0, 0]),
    "ruffled": (
        [0, 0.35, 0.5, 0.58, 0.72, 0.82, 0.9, 1.04, 0.92, 1.08, 0.96],
        [0.2, 0.7, 0.75, 1.1, 0.85, 1.12, 0.8, 0.72, 0.42, 0.22, 0],
    ),
    "spoon": ([0, 0.45, 0.6, 0.7, 0.92, 1.03], [0.25, 0.25, 0.35, 1, 1.1, 0.4]),
    "fringed": (
        [0, 0.4, 0.7, 0.9, 0.9, 0.78, 1, 1, 0.82, 1.06, 1.06, 0.84],
        [0.1, 0.5, 0.95, 1.15, 1.15, 0.8, 0.7, 0.7, 0.42, 0.26, 0.26, 0],
    ),
    "star": ([0, 0.12, 0.35, 0.7, 1, 1], [0.75, 1.1, 0.85, 0.33, 0, 0]),
    "leaf": ([0, 0.1, 0.3, 0.6, 1, 1], [0, 0.3, 1, 0.95, 0, 0]),
    "blade": ([0, 0.3, 0.7, 1, 1], [1, 1, 0.7, 0, 0]),
}
_GREENS = np.array(
    [(58, 112, 44), (92, 148, 58), (38, 88, 52), (120, 152, 66), (74, 128, 84), (130, 124, 60)]
)
_PETAL_COLOURS = np.array([colours.petal for colours in COLOURS])
GROUNDS = (  # dark and light of what lies far behind
    ((26, 58, 28), (110, 156, 74)),
    ((20, 46, 38), (92, 138, 96)),
    ((52, 46, 30), (150, 134, 92)),
    ((48, 66, 34), (172, 182, 98)),
    ((40, 54, 66), (150, 172, 182)),
)

# Directions from a table rounded to 9 digits: the last bit of a sine differs between machines.
TURN = 4096
_DIRECTIONS = np.array(
    [
        (round(math.cos(2 * math.pi * k / TURN), 9), round(math.sin(2 * math.pi * k / TURN), 9))
        for k in range(TURN)
    ]
)


@dataclass(frozen=True)
class Flower:
    """A drawn picture.

    image: uint8 (height, width, 3). mask: bool (height, width), the flower's visible pixels
    (what stands in front of it is not flower). label: the class, from 0.
    """

    image: np.ndarray
    mask: np.ndarray
    label: int


class _Frame(NamedTuple):
    """A picture's size. Scenes are in units of its short side, with the origin in the centre."""

    size_px: tuple[int, int]
    short_side_px: int
    supersample: int
    detail: int  # 1 to 3: details too small to be seen at low resolution are left out there


class _Sprite(NamedTuple):
    """Polygons to be filled one over the other; the first is the silhouette."""

    points: np.ndarray  # (vertices of all polygons, 2)
    polygons: tuple[slice, ...]  # of a flat list of the points' coordinates
    tones: np.ndarray  # (polygons, 3 or 1), times a figure's tint


class _Figures(NamedTuple):
    """n placed copies of a sprite."""

    sprite: _Sprite
    points: np.ndarray  # (n, vertices of all polygons, 2) in short sides
    tints: np.ndarray  # (n, 3)


class _Pose(NamedTuple):
    centre: np.ndarray  # (2,) in short sides
    radius: float  # in short sides
    axis: np.ndarray  # unit vector in the picture about which the flower is tilted
    tilt: np.ndarray  # its cosine and sine
    cup: float  # height of the petals' ends over the eye, in flower radii


def class_names(num_classes: int = NUM_CLASSES) -> list[str]:
    """Unique names of the first classes, such as "5 round, white, yellow eye".

    Raises:
        UserError: num_classes is not in 1 to 102.
    """
    _check_range("classes", num_classes, 1, NUM_CLASSES)
    names = []
    for form, colours in map(_species, range(num_classes)):
        mark = f"{colours.mark_name} {form.mark}" if form.mark else f"{colours.eye_name} eye"
        names.append(f"{form.petals} {form.shape}, {colours.name}, {mark}")
    return names


def full_size(seed: int, split: str, index: int) -> tuple[int, int]:
    """(width, height) in px of a picture at full resolution, without drawing it.

    Raises:
        ValueError: unknown split, or a negative seed or index.
    """
    return _draw_size(_generator(seed, split, index))


def draw_flower(
    seed: int,
    split: str,
    index: int,
    num_classes: int = NUM_CLASSES,
    short_side_px: int | None = None,
) -> Flower:
    """Picture `index` of a split; its label is index % num_classes.

    With `short_side_px` the same scene is drawn at that resolution, else at `full_size`: the two
    agree but for sensor noise, which is per pixel, and details too small for the resolution.

    Raises:
        ValueError: unknown split, or a negative seed or index.
        UserError: num_classes is not in 1 to 102, or short_side_px not in 16 to 4000.
    """
    _check_range("classes", num_classes, 1, NUM_CLASSES)
    label = index % num_classes
    rng = _generator(seed, split, index)
    frame = _make_frame(_draw_size(rng), short_side_px)
    pose = _random_pose(rng)
    blossom = _random_blossom(rng, pose, label, frame.detail)
    picture = _far_background(rng, frame)
    _cast_shadow(rng, picture, blossom)
    canvas = picture.resize(_canvas_size(frame), Image.Resampling.NEAREST)
    mask = Image.new("L", canvas.size)
    for figures in _near_background(rng, pose, frame.detail):
        _paint(canvas, figures)
    for figures in blossom:
        _paint(canvas, figures)
        _fill_silhouettes(mask, figures, 255)
    for figures in _occluders(rng, pose, frame.detail):
        _paint(canvas, figures)
        _fill_silhouettes(mask, figures, 0)
    image = _photograph(rng, canvas.reduce(frame.supersample))
    return Flower(image, np.asarray(mask.reduce(frame.supersample)) >= 128, label)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UserError(f"{name} {value}: choose from {low} to {high}")


def _check_short_side(short_side_px: int) -> None:
    _check_range("short side", short_side_px, MIN_SHORT_SIDE_PX, MAX_SHORT_SIDE_PX)


def _species(label: int) -> tuple[_Form, _Colours]:
    form = FORMS[label % len(FORMS)]
    return form, COLOURS[(label // len(FORMS) + form.first_colour) % len(COLOURS)]


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    words = [seed, SPLITS.index(split), index]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    sizes = [size for size, times in FULL_SIZES.items() for _ in range(times)]
    return sizes[rng.integers(len(sizes))]


def _make_frame(full_px: tuple[int, int], short_side_px: int | None) -> _Frame:
    full_short_px = min(full_px)
    short = full_short_px if short_side_px is None else short_side_px
    _check_short_side(short)
    width, height = (max(short, round(side * short / full_short_px)) for side in full_px)
    detail = 1 if short <= 128 else 2 if short <= 256 else 3
    return _Frame((width, height), short, 3 if detail == 1 else 2, detail)


def _canvas_size(frame: _Frame) -> tuple[int, int]:
    width, height = frame.size_px
    return width * frame.supersample, height * frame.supersample


def _uniform(rng: np.random.Generator, *ranges: tuple[float, float], n: int) -> np.ndarray:
    """n draws from each range, (ranges, n)."""
    low, high = np.array(ranges).T[:, :, None]
    return low + (high - low) * rng.random((len(ranges), n))


def _directions(rng: np.random.Generator, n: int) -> np.ndarray:
    return _DIRECTIONS[rng.integers(TURN, size=n)]


def _turned(points: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Points (..., 2) turned so that the first axis points in `direction` (..., 2)."""
    x, y = points[..., 0], points[..., 1]
    cos, sin = direction[..., 0], direction[..., 1]
    return _joined(x * cos - y * sin, x * sin + y * cos)


def _joined(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    points = np.empty((*x.shape, 2))  # faster than np.stack, which counts at 64 px
    points[..., 0], points[..., 1] = x, y
    return points


def _mix(a, b, share: float) -> np.ndarray:
    return np.asarray(a) * (1 - share) + np.asarray(b) * share


def _smooth(points: np.ndarray, times: int) -> np.ndarray:
    """A closed polygon (vertices, 2) with its corners cut (Chaikin), the vertices doubled."""
    for _ in range(times):
        following = np.roll(points, -1, axis=0)
        points = np.stack([_mix(points, following, share) for share in (0.25, 0.75)], axis=1)
        points = points.reshape(-1, 2)
    return points


@functools.cache
def _outline(shape: str, detail: int) -> np.ndarray:
    """The closed outline (vertices, 2) of a shape along the first axis, from 0 to about 1."""
    half = np.array(SHAPES[shape], float).T
    return _smooth(np.concatenate([half, half[::-1] * (1, -1)]), detail)


@functools.cache
def _half(shape: str, detail: int) -> np.ndarray:
    """One side of an outline, closed along the axis."""
    half = np.array(SHAPES[shape], float).T
    return _smooth(np.concatenate([half, half[-1:] * (1, 0), half[:1] * (1, 0)]), detail)


def _disc(detail: int, radius: float = 1, centre: tuple[float, float] = (0, 0)) -> np.ndarray:
    return _DIRECTIONS[:: TURN // (12 * detail)][: 12 * detail] * radius + centre


def _sprite(*layers: tuple[np.ndarray, object]) -> _Sprite:
    points, tones = zip(*layers, strict=True)
    ends = itertools.accumulate((2 * len(polygon) for polygon in points), initial=0)
    polygons = tuple(itertools.starmap(slice, itertools.pairwise(ends)))
    return _Sprite(np.concatenate(points), polygons, np.array(tones, float).reshape(len(tones), -1))


@functools.cache
def _object_sprite(name: str, detail: int) -> _Sprite:
    """What is not flower; each from 0 to 1 along the first axis."""
    if name in ("leaf", "blade"):
        rib = _outline("blade", detail) * (0.95, 0.05)
        veins = [(rib, 1.35)] if detail > 1 else []
        return _sprite((_outline(name, detail), 0.82), (_half(name, detail), 1.08), *veins)
    if name == "berry":
        discs = [(1, (0, 0), 0.75), (0.8, (0.12, 0.12), 1), (0.22, (0.35, 0.35), 1.7)]
        return _sprite(*[(_disc(detail, radius, at), tone) for radius, at, tone in discs])
    if name == "bud":
        outer, inner = _outline("pointed", detail), _outline("pointed", detail) * (1, 0.4)
        return _sprite((outer, 0.85), (outer * (0.95, 0.75), 1), (inner, 1.12))
    wing = _outline("round", detail) * (1, 0.5)
    layers = []
    for sign in (1, -1):
        for turn, size in ((TURN // 7, 1), (TURN // 3, 0.75)):
            placed = _turned(wing * size, _DIRECTIONS[sign * turn])
            layers += [(placed, 0.7), (placed * 0.82, 1.05)]
    return _sprite(*layers, (_outline("leaf", detail) * (0.9, 0.07) - (0.4, 0), 0.2))


def _gradient(outline: np.ndarray, outer, inner, colours, steps: int) -> list:
    """Layers from one size (along, across) to another, each in the mean colour of its band."""
    return [
        (outline * _mix(outer, inner, k / steps), _mix(*colours, (k + 0.5) / steps))
        for k in range(steps)
    ]


@functools.cache
def _petal_sprite(label: int, detail: int) -> _Sprite:
    """A petal of unit length: from its edge to its colour, from there to the throat, and marks."""
    form, colours = _species(label)
    outline = _outline(form.shape, detail) * (1, form.half_width)
    steps = (2, 4, 6)[detail - 1]
    tips, ring = form.mark == "tips", form.mark == "ring"
    size = 0.78 if tips else 1
    layers = [(outline, colours.mark)] if tips else []
    shades = colours.edge, colours.petal
    layers += _gradient(outline, (size, 1), (size * 0.88, 0.65), shades, steps)
    layers.append((outline * (size * 0.88, 0.65), colours.petal))
    if ring:
        layers.append((outline * (0.6, 0.8), colours.mark))
    outer = (0.44, 0.56) if ring else (0.52, 0.6)
    layers += _gradient(outline, outer, (0.2, 0.2), (colours.petal, colours.throat), steps)
    if form.mark == "stripes":
        layers += _lanes(form, colours.mark, (-0.5, 0, 0.5), (0.08, 0.1), detail)
    elif detail > 1 and not ring:
        shade = _mix(colours.petal, colours.edge, 0.5)
        layers += _lanes(form, shade, (-0.5, -0.25, 0, 0.25, 0.5), (0.38, 0.012), detail)
    return _sprite(*layers)


def _lanes(form: _Form, colour, across: tuple, size: tuple[float, float], detail: int) -> list:
    """Lines outwards along a petal, spread as it widens; size is where they start and how wide."""
    start, width = size
    lane = _outline("leaf", detail) * (0.86 - start, width * form.half_width / 0.4) + (start, 0)
    spread = lane[:, :1] * (0, form.half_width)
    return [(lane + spread * position, colour) for position in across]


@functools.cache
def _eye_sprite(label: int, detail: int) -> _Sprite:
    """The centre of a flower of unit radius: a disc with florets in a sunflower's spiral."""
    form, colours = _species(label)
    rim, light = _mix(colours.eye, (40, 16, 0), 0.4), _mix(colours.eye, (255, 250, 220), 0.35)
    layers = [(_disc(detail, form.eye), rim), (_disc(detail, form.eye * 0.82), colours.eye)]
    florets = (7, 40, 70)[detail - 1]
    for k in range(florets):
        at = _DIRECTIONS[round(k * 0.381966 * TURN) % TURN] * form.eye * 0.9
        at = at * math.sqrt((k + 0.5) / florets)
        size = form.eye * (0.2, 0.1, 0.075)[detail - 1]
        layers.append((_disc(detail, size, at)[::2], light if k % 3 else rim))
    return _sprite(*layers)


def _place(
    sprite: _Sprite,
    base: np.ndarray,
    direction: np.ndarray,
    length: np.ndarray,
    width: np.ndarray,
    bend: np.ndarray,
) -> np.ndarray:
    """Copies of a sprite as (n, vertices, 2): stretched, bent sideways, turned and moved.

    base and direction are (n, 2); length, width and bend (in lengths) are (n,).
    """
    along, across = sprite.points.T
    curved = across * width[:, None] + bend[:, None] * along**2 * length[:, None]
    points = _joined(along * length[:, None], curved)
    return _turned(points, direction[:, None]) + base[:, None]


def _random_pose(rng: np.random.Generator) -> _Pose:
    """Small flowers may stand further from the centre: a square crop shows nearly all of each."""
    ranges = (-1, 1), (-1, 1), (0.23, 0.42), (0, TURN * 0.15), (0.05, 0.3)
    x, y, radius, tilt, cup = _uniform(rng, *ranges, n=1)[:, 0]
    room = 0.53 - 0.95 * radius
    axis = _directions(rng, 1)[0]
    return _Pose(np.array([x, y]) * room, radius, axis, _DIRECTIONS[int(tilt)], cup)


def _project(points: np.ndarray, pose: _Pose) -> np.ndarray:
    """Points (..., 2) of a flower of unit radius, seen in the picture (short sides)."""
    level = _turned(points, pose.axis * (1, -1))
    u, v = level[..., 0], level[..., 1]
    height = pose.cup * (u * u + v * v)
    cos, sin = pose.tilt
    nearness = 1 / (1 - 0.25 * (height * cos + v * sin))
    seen = _joined(u * nearness, (v * cos - height * sin) * nearness)
    return _turned(seen, pose.axis) * pose.radius + pose.centre


def _random_blossom(
    rng: np.random.Generator, pose: _Pose, label: int, detail: int
) -> list[_Figures]:
    """The petals and the eye; the petals catch more light on one side."""
    form, _ = _species(label)
    n = form.petals
    sprite = _petal_sprite(label, detail)
    first, light = rng.integers(TURN, size=2)
    colour = _uniform(rng, *[(0.9, 1.07)] * 3, n=1)[:, 0]
    figures = []
    for whorl in range(form.whorls):
        size = 1 - 0.36 * whorl
        ranges = (-0.1, 0.1), (0.9, 1.04), (0.92, 1.1), (-0.07, 0.07), (0.95, 1.03)
        turn, length, width, bend, shade = _uniform(rng, *ranges, n=n)
        turns = first + (np.arange(n) + 0.5 * whorl + turn) * TURN / n
        direction = _DIRECTIONS[np.rint(turns).astype(int) % TURN]
        lit = 1 + 0.09 * (direction * _DIRECTIONS[light]).sum(axis=1)
        flat = _place(sprite, direction * 0.04, direction, length * size, width * size, bend)
        tints = (shade * lit * (1 + 0.06 * whorl))[:, None] * colour
        figures.append(_Figures(sprite, _project(flat, pose), tints))
    eye = _eye_sprite(label, detail)
    return [*figures, _Figures(eye, _project(eye.points, pose)[None], np.ones((1, 3)))]


def _random_figures(
    rng: np.random.Generator,
    name: str,
    base: np.ndarray,
    length: tuple[float, float],
    slimness: tuple[float, float],
    detail: int,
    direction: np.ndarray | None = None,
) -> _Figures:
    """Objects at base (n, 2); leaves and blades are green, the rest in petals' colours."""
    n = len(base)
    sprite = _object_sprite(name.removeprefix("coloured "), detail)
    ranges = length, slimness, (-0.25, 0.25), (0.75, 1.1)
    size, slim, bend, shade = _uniform(rng, *ranges, n=n)
    palette = _GREENS if name in ("leaf", "blade") else _PETAL_COLOURS
    chosen = palette[rng.integers(len(palette), size=n)] * rng.uniform(0.92, 1.08, (n, 3))
    direction = _directions(rng, n) if direction is None else direction
    points = _place(sprite, base, direction, size, size * slim, bend)
    return _Figures(sprite, points, chosen * shade[:, None])


def _around(rng: np.random.Generator, pose: _Pose, distance: tuple[float, float], n: int):
    """n points around the flower's centre, distances in flower radii, and their directions."""
    outward = _directions(rng, n)
    far = _uniform(rng, distance, n=n)[0] * pose.radius
    return pose.centre + outward * far[:, None], outward


def _far_background(rng: np.random.Generator, frame: _Frame) -> Image.Image:
    """Ground, leaves and coloured things out of focus."""
    dark, light = np.array(GROUNDS[rng.integers(len(GROUNDS))])
    cells = dark + (light - dark) * rng.random((5, 7, 1)) + rng.uniform(-14, 14, (5, 7, 3))
    coarse = Image.fromarray(np.clip(cells, 0, 255).astype(np.uint8))
    picture = coarse.resize(frame.size_px, Image.Resampling.BICUBIC)
    reach = np.array(frame.size_px) / frame.short_side_px * 0.55
    for name, most, length, slimness in (
        ("leaf", 22, (0.15, 0.45), (0.12, 0.28)),
        ("blade", 9, (0.4, 1.2), (0.01, 0.04)),
        ("coloured leaf", 6, (0.12, 0.4), (0.15, 0.4)),
        ("berry", 9, (0.03, 0.14), (0.9, 1)),
        ("butterfly", 3, (0.1, 0.2), (0.9, 1.1)),
    ):
        base = reach * _uniform(rng, (-1, 1), (-1, 1), n=rng.integers(most // 3, most + 1)).T
        _paint(picture, _random_figures(rng, name, base, length, slimness, frame.detail))
    return _blurred(picture, rng.uniform(0.008, 0.028))


def _near_background(rng: np.random.Generator, pose: _Pose, detail: int) -> list[_Figures]:
    """In focus and behind the flower: its stem, leaves, and things in petals' colours."""

    def some(name, most, distance, length, slimness):
        base, outward = _around(rng, pose, distance, rng.integers(0, most + 1))
        size = tuple(pose.radius * value for value in length)
        figures.append(_random_figures(rng, name, base, size, slimness, detail, outward))
        return base, outward

    down = _DIRECTIONS[[TURN // 4 + rng.integers(-TURN // 10, TURN // 10)]]
    stem = _random_figures(rng, "blade", pose.centre[None], (1, 1.3), (0.018, 0.026), detail, down)
    figures = [stem]
    some("leaf", 6, (0.2, 0.9), (0.8, 1.5), (0.15, 0.28))
    base, outward = some("bud", 4, (0.9, 1.3), (0.35, 0.6), (0.22, 0.34))
    calyx = (pose.radius * 0.2, pose.radius * 0.25)
    figures.append(_random_figures(rng, "leaf", base, calyx, (0.45, 0.5), detail, outward))
    some("coloured leaf", 3, (0.7, 1.2), (0.5, 0.9), (0.2, 0.4))
    some("berry", 5, (0.9, 1.7), (0.08, 0.16), (0.95, 1))
    some("butterfly", 1, (1.1, 1.5), (0.35, 0.55), (0.9, 1.1))
    return figures


def _occluders(rng: np.random.Generator, pose: _Pose, detail: int) -> list[_Figures]:
    """Leaves and a blade in front of a part of the flower."""
    base, outward = _around(rng, pose, (0.95, 1.3), rng.integers(0, 3))
    inward = _turned(-outward, _DIRECTIONS[rng.integers(-TURN // 6, TURN // 6, len(base))])
    size = (pose.radius * 0.5, pose.radius * 0.85)
    leaves = _random_figures(rng, "leaf", base, size, (0.16, 0.3), detail, inward)
    n = rng.integers(0, 2)
    base = pose.centre + pose.radius * _uniform(rng, (-1, 1), (1.3, 1.6), n=n).T
    up = _DIRECTIONS[rng.integers(-TURN // 3, -TURN // 6, n)]
    size = (pose.radius * 1.5, pose.radius * 2.8)
    return [leaves, _random_figures(rng, "blade", base, size, (0.025, 0.04), detail, up)]


def _flat_vertices(points: np.ndarray, size_px: tuple[int, int]) -> list[list[int]]:
    """Points (n, vertices, 2) rounded to the pixel grid, a flat list for each figure."""
    vertices = np.rint(points * min(size_px) + (np.array(size_px) - 1) / 2).astype(int)
    return vertices.reshape(len(points), 2 * points.shape[1]).tolist()


def _paint(image: Image.Image, figures: _Figures) -> None:
    sprite, points, tints = figures
    colours = np.minimum(tints[:, None] * sprite.tones, 255).astype(int).tolist()
    draw = ImageDraw.Draw(image)
    for xy, fills in zip(_flat_vertices(points, image.size), colours, strict=True):
        for polygon, fill in zip(sprite.polygons, fills, strict=True):
            draw.polygon(xy[polygon], fill=tuple(fill))


def _fill_silhouettes(mask: Image.Image, figures: _Figures, value: int) -> None:
    vertices = figures.sprite.polygons[0].stop // 2
    draw = ImageDraw.Draw(mask)
    for xy in _flat_vertices(figures.points[:, :vertices], mask.size):
        draw.polygon(xy, fill=value)


def _blurred(image: Image.Image, radius: float) -> Image.Image:
    """Blurred with a standard deviation given in short sides."""
    return image.filter(ImageFilter.GaussianBlur(round(radius * min(image.size), 3)))


def _cast_shadow(rng: np.random.Generator, picture: Image.Image, blossom: list[_Figures]) -> None:
    shadow = Image.new("L", picture.size)
    shift = _directions(rng, 1)[0] * rng.uniform(0.02, 0.05)
    darkness = int(rng.integers(90, 170))
    for petals in blossom[:-1]:
        _fill_silhouettes(shadow, petals._replace(points=petals.points + shift), darkness)
    picture.paste((8, 16, 12), mask=shadow.filter(ImageFilter.BoxBlur(0.03 * min(shadow.size))))


def _photograph(rng: np.random.Generator, image: Image.Image) -> np.ndarray:
    """Focus, light and sensor noise of a camera, uint8 (height, width, 3)."""
    image = _blurred(image, rng.uniform(0, 0.006))
    brightness, cast = rng.uniform(0.66, 1.22), rng.uniform(0.91, 1.09, 3)
    gains = 128 * brightness * cast * rng.uniform(0.75, 1.15, (2, 2, 1))
    light = Image.fromarray(gains.astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    lit = (np.asarray(image, np.uint16) * np.asarray(light) >> 7).astype(np.int16)
    noise = int(rng.integers(1, 7))
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
    """Write SPLIT/CLASS/00000.png and masks/SPLIT/CLASS/00000.png, each split in full.

    Raises:
        UserError: the folder is not empty or can't be written, or a number is out of range.
    """
    if short_side_px is not None:
        _check_short_side(short_side_px)
    names = [
        f"{label:03d}_" + re.sub(r"\W+", "_", name)
        for label, name in enumerate(class_names(num_classes))
    ]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not an empty folder; choose another --out")
    make_folder(folder)
    jobs = list(itertools.product(splits, range(num_classes * images_per_class)))
    for split, index in tqdm(jobs, desc="pictures", disable=None):
        flower = draw_flower(seed, split, index, num_classes, short_side_px)
        place = Path(split, names[flower.label], f"{index // num_classes:05d}.png")
        for path, pixels in (
            (folder / place, flower.image),
            (folder / "masks" / place, flower.mask),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def main() -> None:
    args = parse_args()
    write_folders(args.out, args.classes, args.images_per_class, args.short_side, args.seed)
    print(f"-> {args.out}: {', '.join(SPLITS)}, masks")


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add
    add("--out", type=Path, required=True, help="new or empty folder")
    add("--classes", type=cli.positive, default=10, help="1 to 102")
    add("--images-per-class", type=cli.positive, default=20, help="images a class in each split")
    add("--short-side", type=cli.positive, metavar="PX", help="(default: full resolution, 500)")
    add("--seed", type=cli.seed, default=0, help="seed of all randomness")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(guard(main))
