"""Files of weights as people have them: unwrapped, checked, and their code never run.

    import torch; from pathlib import Path; from common.networks import statedict
    content, wanted = {"model": {"module.bias": torch.ones(3)}}, {"bias": torch.zeros(3)}
    print(statedict.fit(content, Path("checkpoint.pt"), wanted, "a network of one bias"))

A file is torch.save's, of today or of old, or safetensors'. Weights may lie under keys such as
"model", and their names may begin with words such as "module.", which wrappers put there.
"""

import re
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from common.errors import UserError

PREFERRED = {"model", "state_dict", "network"}  # above averages of them, such as "model_ema"
DEEPEST = 3  # so many keys deep are weights looked for
SAVE_AGAIN = "save the weights alone where they were made: torch.save(model.state_dict(), FILE)"


def find(
    path: Path, wanted: Mapping[str, Tensor], network: str, may_miss: Collection[str] = ()
) -> tuple[dict[str, Tensor], str]:
    """The tensors in a file that a network wants, by its own names, and the key they lie under.

    Args:
        path: The file.
        wanted: The network's state dict, whose names, shapes and dtypes count (meta will do).
        network: Its name, for messages.
        may_miss: Names that may be missing or of another shape, and are left out then, as
            num_batches_tracked may always.

    Returns:
        The tensors on the CPU, in the order and of the dtypes of `wanted`, and words on the key
        that they were taken from, empty where the file is a state dict and no more.

    Raises:
        UserError: no such file, not one of weights, of another network, or values not finite.
    """
    return fit(_read(path), path, wanted, network, may_miss)


def fit(
    content, path: Path, wanted: Mapping[str, Tensor], network: str, may_miss: Collection[str] = ()
) -> tuple[dict[str, Tensor], str]:
    """As `find`, in the content that a file was found to have."""
    groups = dict(_groups(content, wanted))

    def rank(keys: tuple[str, ...]) -> tuple[int, bool]:
        fitting = sum(_fits(value, wanted[name]) for name, value in groups[keys].items())
        return fitting, bool(PREFERRED & set(keys))

    chosen = max(groups, key=rank, default=())
    group = groups.get(chosen, {})
    for name, tensor in wanted.items():
        spared = name in may_miss or name.endswith(".num_batches_tracked")
        if not (spared or _fits(group.get(name), tensor)):
            told = f"not {network}: {name} of shape {tuple(tensor.shape)} is missing"
            if name in group:
                told += f", it is {_kind(group[name])}"
            elif not group:
                told += f" in {_kind(content)}; {SAVE_AGAIN}"
            raise UserError(f"{path}: {told}")
    fitting = [name for name, tensor in wanted.items() if _fits(group.get(name), tensor)]
    tensors = {name: group[name].detach().to(wanted[name].dtype) for name in fitting}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} holds values that are not finite: refused")
    rivals = [keys for keys in groups if keys != chosen and rank(keys)[0] == rank(chosen)[0]]
    places = [_quoted([".".join(filter(None, keys)) or "no key"]) for keys in (chosen, *rivals)]
    taken = f"taken from {', not '.join(places)}" if len(chosen) > 1 or rivals else ""
    return tensors, taken


def _groups(content, wanted: Mapping, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple, dict]]:
    """Values by wanted names; groups by the keys they lie under and their names' beginning."""
    if not isinstance(content, dict) or len(keys) > DEEPEST:
        return
    groups = defaultdict(dict)
    for key, value in content.items():
        words = key.split(".") if isinstance(key, str) and len(key) < 300 else []
        for k in range(len(words)):
            if (name := ".".join(words[k:])) in wanted:
                groups[".".join(words[:k])][name] = value
    yield from (((*keys, prefix), group) for prefix, group in groups.items())
    for key, value in content.items():
        yield from _groups(value, wanted, (*keys, str(key)))


def _fits(value, wanted: Tensor) -> bool:
    """Whether a value is a plain tensor of this shape, of floats where floats are wanted."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.shape == wanted.shape
        and value.is_floating_point() == wanted.is_floating_point()
    )


def _kind(value) -> str:
    """What a value is, for a message: a tensor's dtype and shape, a dict's first keys."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        more = ", ..." if len(value) > 3 else ""
        return f"a dict with the keys {_quoted(list(value)[:3]) or 'none'}{more}"
    return f"a value of type {type(value).__name__}"


def _quoted(words: Iterable) -> str:
    return ", ".join(f'"{str(word)[:80]}"' for word in words)


def _read(path: Path):
    """What a file holds: tensors and plain values; nothing else is ever unpickled.

    A bit that has flipped is seen in the checksums of torch.save's format of today; the old one and
    safetensors' have none.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a file of PyTorch weights")
    try:
        if _is_safetensors(path):
            return _read_safetensors(path)
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
        elif "TorchScript" in str(error):
            reason = "it is a TorchScript program"
        raise UserError(
            f"{path}: not a file of PyTorch weights that can be read safely ({reason}); "
            f"{SAVE_AGAIN}"
        ) from None


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors' do: the header's length in 8 bytes, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file  # few need it

    return load_file(path)
