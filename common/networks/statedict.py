"""Files of weights as people have them: unwrapped, checked, and their code never run.

    import torch; from pathlib import Path; from common.networks import statedict
    torch.save({"model": {"module.bias": torch.ones(3)}}, "checkpoint.pt")
    print(statedict.find(Path("checkpoint.pt"), {"bias": torch.zeros(3)}, "a network of one bias"))

A file is torch.save's, of today or of old, or safetensors'. Weights may lie under one of the keys
CONTAINERS, and their names may begin with words of WRAPPERS.
"""

import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from common.errors import UserError

# In this order: a network comes before its average.
CONTAINERS = (
    *("model", "state_dict", "model_state_dict", "network", "net", "weights"),
    *("model_ema", "state_dict_ema", "ema", "average"),
)
WRAPPERS = {"module", "_orig_mod", "model", "network", "net", "features"}
SAVE_AGAIN = "save the weights alone where they were made: torch.save(model.state_dict(), FILE)"


def find(
    path: Path, wanted: Mapping[str, Tensor], network: str, may_miss: Collection[str] = ()
) -> tuple[dict[str, Tensor], str]:
    """The tensors in a file that a network wants, by its own names, and the key they lie under.

    `wanted` is its state dict, whose names, shapes and dtypes count (meta will do), `network` its
    name, for messages. Names of `may_miss` may be missing or of another shape, and are left out
    then, as num_batches_tracked always. The tensors are on the CPU, in the order of `wanted`; the
    key is told in words, empty where the file is a state dict and no more.
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
                raise UserError(f"{path}: {name} holds values that are not finite: refused")
        elif name not in may_miss and not name.endswith(".num_batches_tracked"):
            wanted_one = f"{name} of shape {tuple(tensor.shape)} is missing"
            raise UserError(f"{path}: not {network}: {wanted_one}; {SAVE_AGAIN}")
    key = f"{container}.{prefix}".rstrip(".")
    return tensors, f'taken from "{key}"' if container else ""


def _read(path: Path):
    """What a file holds: tensors and plain values; nothing else is ever unpickled."""
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
