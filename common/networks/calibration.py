"""Losses relative to those between unrelated pictures: 0 is "the same", 1 "another picture".

    from common.networks.calibration import calibrate
    unrelated = [{"l2": 100.0}, {"l2": 140.0}]
    print(calibrate({"shift": {"l2": 3.0}}, unrelated)["shift"]["l2"])

Images are float (3, H, W) in [0, 1].
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from common.data.images import fit_to, to_tensor
from common.errors import UserError
from common.job import progress
from common.networks.losses import Losses, compare
from common.networks.vgg import VGG16Features
from common.reporting.statistics import bootstrap_interval

Size = tuple[int, int]  # (width, height) in px
Calibrated = dict[str, dict[str, tuple[float, float]]]  # {pair: {loss: (raw, relative)}}
LOCK_STEP_PIXELS = 2_000_000  # photos of one size whose maps may be alive together


@dataclass(frozen=True)
class References:
    """The unrelated pictures that losses of photos are calibrated with.

    pictures: uint8 (height, width, 3). sizes: what can be compared of each without scaling, from
    its left. chosen: their names for each photo. are_photos: they are the photos themselves, so
    that one of the same size needs no pass of its own.
    """

    pictures: Mapping[str, np.ndarray]
    sizes: Mapping[str, Size]
    chosen: Mapping[str, Sequence[str]]
    are_photos: bool

    def picture(self, name: str, size: Size) -> Tensor:
        """A picture as (3, height, width), scaled and cropped where its own size differs."""
        picture = self.pictures[name]
        if self.sizes[name] != size:
            picture = fit_to(picture, *size)
        return to_tensor(picture)[..., : size[0]]

    def used(self, sizes: Mapping[str, Size]) -> dict:
        """{"references": names, "references_resized": {name: "WxH"}} of those that are used.

        Resized are those that are scaled to a photo's entry in `sizes`.
        """
        names, resized = set(), {}
        for photo, chosen in self.chosen.items():
            names.update(chosen)
            for name in chosen:
                if self.sizes[name] != sizes[photo]:
                    height, width, _ = self.pictures[name].shape
                    resized[name] = f"{width}x{height}"
        return {"references": sorted(names), "references_resized": resized}


def calibrate(raw: Mapping[str, Losses], unrelated: Sequence[Losses]) -> Calibrated:
    """Every pair's losses, each beside its ratio to its mean over `unrelated`.

    Raises:
        UserError: a loss is 0 or not a number between unrelated pictures.
    """
    yardstick = {loss: np.mean([losses[loss] for losses in unrelated]) for loss in unrelated[0]}
    for loss, value in yardstick.items():
        if not value > 0:
            raise UserError(
                f"{loss} is {value:g} between unrelated pictures, so nothing can be calibrated with"
                " it; give other reference pictures or other weights"
            )
    return {
        pair: {loss: (value, float(value / yardstick[loss])) for loss, value in losses.items()}
        for pair, losses in raw.items()
    }


def calibrated_losses(
    network: VGG16Features,
    sizes: Mapping[str, Size],
    pairs: Mapping[str, tuple[str, str]],
    make_copies: Callable[[str], Mapping[str, Tensor]],
    references: References,
) -> dict[str, Calibrated]:
    """Calibrated losses of pairs of copies of every photo, each image in one pass.

    `sizes` has each photo's size as compared, `make_copies(photo)` its (3, height, width) copies,
    "original" among them, and `pairs` the names of two copies each. Photos of one size go through
    the network together, where memory allows.
    """
    used, calibrated = {name for pair in pairs.values() for name in pair}, {}
    for group in _same_size_groups(sizes):
        copies = {}
        for photo in group:
            made = make_copies(photo)
            copies[photo] = {name: made[name] for name in made if name in used}
        # In this order: the maps of an image are held until its last pair is out.
        images = {(photo, "original"): copies[photo]["original"] for photo in group}
        compared = {}
        for photo in group:
            for name in references.chosen[photo]:
                # A reference may have a photo's name and yet be another picture.
                in_group = references.are_photos and name in group
                other = (name, "original" if in_group else "unrelated")
                if other not in images:
                    images[other] = references.picture(name, sizes[photo])
                compared[photo, "unrelated", name] = ((photo, "original"), other)
        for photo in group:
            images |= {(photo, name): copy for name, copy in copies[photo].items()}
            for pair, (a, b) in pairs.items():
                compared[photo, "pair", pair] = ((photo, a), (photo, b))
        with progress(total=len(images) * len(network.taps), desc=", ".join(group)) as bar:
            losses = compare(network, images, compared, bar.update)
        for photo in group:
            unrelated = [losses[photo, "unrelated", name] for name in references.chosen[photo]]
            raw = {pair: losses[photo, "pair", pair] for pair in pairs}
            calibrated[photo] = calibrate(raw, unrelated)
    return {photo: calibrated[photo] for photo in sizes}


def _same_size_groups(sizes: Mapping[str, Size]) -> Iterator[list[str]]:
    for width, height in dict.fromkeys(sizes.values()):
        photos = [photo for photo in sizes if sizes[photo] == (width, height)]
        length = max(1, LOCK_STEP_PIXELS // (width * height))
        for start in range(0, len(photos), length):
            yield photos[start : start + length]


def summarise(calibrated: Mapping[str, Calibrated], pair: str) -> dict[str, dict[str, float]]:
    """{loss: {"raw", "relative", "low", "high"}} of one pair: means over photos.

    low and high are the 95 % interval of the mean of relative, NaN where there is one photo.
    """
    rows, photos = {}, [losses[pair] for losses in calibrated.values()]
    for loss in photos[0]:
        raw, relative = np.array([losses[loss] for losses in photos]).T
        low, high = map(float, bootstrap_interval(relative[:, None]))
        means = {"raw": float(raw.mean()), "relative": float(relative.mean())}
        rows[loss] = {**means, "low": low, "high": high}
    return rows
