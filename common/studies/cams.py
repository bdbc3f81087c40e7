"""How good Grad-CAM's maps are: the pointing game on drawn flowers, deletion and insertion."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.data import streams
from common.data.images import centre_crop, to_uint8
from common.data.packed import Packed
from common.data.sets import DrawnSet
from common.job import say
from common.networks import gradcam
from common.networks.normalized import Normalized
from common.reporting import problem2
from common.reporting.plotting import shown_name
from common.reporting.results import Findings
from common.reporting.statistics import bootstrap_interval
from common.training.run import load_checkpoint
from common.training.runs import NetworkSpec, Setup

CURVE_STEPS = 6  # of deletion and insertion


@dataclass(frozen=True)
class Sample:
    """Test images: their rows in the split, float (N, 3, H, W), and int64 labels (N,)."""

    rows: Tensor
    images: Tensor
    labels: Tensor


def load_trained(setup: Setup, spec: NetworkSpec, run: Mapping) -> Normalized:
    """The network of a run, with the weights that the run saved."""
    network, _ = spec.build(setup.args.seed)
    network.load_state_dict(load_checkpoint(Path(run["weights"]))["network"])
    return network


def measure(
    setup: Setup, networks: dict[str, Normalized], untrained: Normalized, tag: str
) -> Findings:
    """Predict --pointing-images test images with maps, draw some of the maps, and measure them.

    The figures show images that the first network gets right and wrong; deletion and insertion
    measure its maps. On drawn flowers all networks and the untrained one play the pointing game.
    `tag` is the origin of the results that tables and figures print.
    """
    args, test = setup.args, setup.packed["test"]
    order = np.random.default_rng(args.seed).permutation(len(test))
    rows = torch.from_numpy(order[: args.pointing_images])
    sample = Sample(rows, *test.squares(rows, args.image_size, setup.device))

    def predict(network: Normalized) -> gradcam.Predictions:
        network = network.to(setup.device).eval()
        layer = network.network.get_submodule(args.layer)
        return gradcam.predict_with_cams(network, layer, sample.images)

    seen = {name: predict(network) for name, network in networks.items()}
    maps = {name: predictions.maps for name, predictions in seen.items()}
    name, first = next(iter(networks.items()))
    shown, figures = map_figures(setup, first, sample, seen, tag)
    result = {
        "layer": args.layer,
        "pointing_game": None,
        "images": shown,
        "all_zero_maps": {name: int((of.amax((1, 2)) == 0).sum()) for name, of in maps.items()},
        "maps": len(rows),
        **delete_and_insert(setup, first, sample, seen[name]),
    }
    tables = {"2.6_faithfulness.txt": problem2.faithfulness_table(result, tag)}
    figures["2.6_faithfulness.png"] = partial(problem2.draw_faithfulness, result=result, tag=tag)
    if isinstance(test.source, DrawnSet):
        maps["random_weights"] = predict(untrained).maps
        result |= play_pointing_game(setup, sample, maps)
        tables["2.6_pointing_game.txt"] = problem2.pointing_table(result, tag)
    return Findings(result, tables, figures=figures)


def map_figures(
    setup: Setup, first: Normalized, sample: Sample, seen: dict[str, gradcam.Predictions], tag: str
) -> tuple[dict[str, list[int]], problem2.Figures]:
    """Figures of the first --images that a network gets right and wrong, with all networks' maps.

    `first` is the first one in `seen`, which has each network's predictions. For an image that
    it gets wrong, its map of the true class is shown too.

    Returns:
        The images' indexes in the split by kind, "right" and "wrong"; the figures by file name.
    """
    args, test = setup.args, setup.packed["test"]
    (name, predictions), *_ = seen.items()
    correct, indexes, figures = predictions.classes == sample.labels.cpu(), {}, {}
    for kind, which in (("right", correct), ("wrong", ~correct)):
        shown = which.nonzero().flatten()[: args.images].tolist()
        indexes[kind] = test.rows[sample.rows[shown]].tolist()
        if not shown:
            say(f"{name} gets none of the test images {kind}")
            continue
        images, labels = sample.images[shown], sample.labels[shown]
        layer = first.network.get_submodule(args.layer)
        rows = problem2.map_rows(
            [to_uint8(image) for image in images.cpu()],
            labels.tolist(),
            test.class_names,
            {
                other: (made.probabilities[shown].numpy(), made.maps[shown].numpy())
                for other, made in seen.items()
            },
            maps_of_truth=gradcam.grad_cam(first, layer, images, labels).cpu().numpy(),
        )
        title = f"Grad-CAM at {args.layer}, {kind} predictions of {shown_name(name)}"
        figures |= problem2.map_figures(kind, title, tag, rows)
    return indexes, figures


def play_pointing_game(
    setup: Setup, sample: Sample, maps: dict[str, Tensor]
) -> dict[str, dict[str, float] | int]:
    """The percentage of maps whose peak lies on the drawn flower, by network and control.

    `maps` has each network's maps of the sample. The controls are a random pixel, "chance", and the
    middle one, "centre".

    Returns:
        pointing_game: for all images. pointing_game_off_centre: for the images whose middle is not
        on the flower, where always looking at the middle scores 0. maps_off_centre: their number.
    """
    size_px, test = setup.args.image_size, setup.packed["test"]
    masks = torch.stack([flower_mask(test, int(row), size_px) for row in sample.rows])
    on_middle = masks[:, size_px // 2, size_px // 2]

    found = {"maps_off_centre": int((~on_middle).sum())}
    of = {"pointing_game": torch.ones_like(on_middle), "pointing_game_off_centre": ~on_middle}
    for key, which in of.items():
        game = {name: gradcam.pointing_game(m[which], masks[which]) for name, m in maps.items()}
        controls = {"chance": masks[which], "centre": on_middle[which]}
        game |= {name: 100 * hit.float().mean().item() for name, hit in controls.items()}
        found[key] = game
    return found


def flower_mask(test: Packed, row: int, size_px: int) -> Tensor:
    """Bool (size_px, size_px): the drawn flower in the square that the network sees."""
    side_px = test.images.shape[1]
    mask = torch.from_numpy(test.source.flower(int(test.rows[row]), side_px).mask.copy())
    return centre_crop(centre_crop(mask[None], side_px, side_px), size_px, size_px)[0]


def delete_and_insert(
    setup: Setup, network: Normalized, sample: Sample, predictions: gradcam.Predictions
) -> dict[str, dict | int]:
    """Deletion and insertion by a network's maps and by control maps, on --curve-images images.

    The curves show the probability of the predicted class.

    Returns:
        deletion and insertion, each with grad_cam, random and centred: the area under the curve
        (mean, low, high) and the mean curve itself, from no pixel to all; and with differences of
        grad_cam to each control, paired over images: {a, b, mean, low, high}. curve_images: the
        number of images.
    """
    args, images = setup.args, sample.images[: setup.args.curve_images]
    classes = predictions.classes[: len(images)].to(setup.device)
    cells = gradcam.map_size(network.network, args.layer, args.image_size)
    generator = streams.generator(args.seed, streams.RANDOM_MAPS)
    maps = {
        "grad_cam": predictions.maps[: len(images)].to(setup.device),
        "random": gradcam.random_maps(images, cells, generator),
        "centred": gradcam.centred_maps(images),
    }
    curves = {
        name: gradcam.deletion_and_insertion(network, images, ranked, classes, CURVE_STEPS)
        for name, ranked in maps.items()
    }
    kinds = {
        kind: summarise({name: of_map[kind] for name, of_map in curves.items()})
        for kind in ("deletion", "insertion")
    }
    return {**kinds, "curve_images": len(images)}


def summarise(curves: dict[str, Tensor]) -> dict[str, dict | list[dict]]:
    """Areas under curves (N, steps + 1) by map, and the first map's differences to the others."""
    areas = {  # over the share of pixels, from 0 to 1
        name: torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1)).double()
        for name, curve in curves.items()
    }
    first, *controls = areas
    rows = {
        name: {**_mean(areas[name]), "curve": curve.mean(0).tolist()}
        for name, curve in curves.items()
    }
    differences = [{"a": first, "b": b, **_mean(areas[first] - areas[b])} for b in controls]
    return {**rows, "differences": differences}


def _mean(values: Tensor) -> dict[str, float]:
    low, high = bootstrap_interval(values.numpy())
    return {"mean": values.mean().item(), "low": low, "high": high}
