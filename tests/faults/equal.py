"""What a run left, without its times: to ask whether two runs ended equal, bit for bit."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

# Times, memory and where a result was made; and what a timed value is computed from.
TIMED = {
    *("provenance", "seconds", "training_seconds", "images_per_second", "peak_memory_mib"),
    *("block_seconds", "step_cost_share", "costs", "time_vs_where", "memory_vs_where"),
    *("time_vs_relu", "draw_seconds", "call_seconds", "weights_sha256"),
}
UNTIMED_FIGURES = ("*.png", "*.csv")


def digest(folder: Path) -> dict[str, object]:
    """Everything of a problem's folder that has to be equal, by file and key."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*.pt")):
        found |= _checkpoint(path, str(path.relative_to(folder)))
    for path in sorted(folder.rglob("metrics.jsonl")):
        rows = [_untimed(json.loads(line)) for line in path.read_text().splitlines()]
        found[str(path.relative_to(folder))] = rows
    for path in sorted(folder.rglob("test.json")):
        found[str(path.relative_to(folder))] = _untimed(json.loads(path.read_text()))
    for path in sorted(folder.rglob("results.json")):
        found[str(path.relative_to(folder))] = _untimed(json.loads(path.read_text()))
    return found


def figures(folder: Path) -> dict[str, str]:
    """SHA-256 of every figure and CSV file."""
    paths = [path for pattern in UNTIMED_FIGURES for path in folder.rglob(pattern)]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(paths)
    }


def _checkpoint(path: Path, name: str) -> dict[str, str]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {f"{name} {key}": value for key, value in _tensors(state, "").items()}


def _tensors(value, name: str) -> dict[str, str]:
    if isinstance(value, Tensor):
        return {name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()}
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {}
    found = {}
    for key, item in items:
        found |= _tensors(item, f"{name}.{key}")
    return found


def _untimed(value):
    if isinstance(value, dict):
        return {key: _untimed(item) for key, item in value.items() if key not in TIMED}
    return [_untimed(item) for item in value] if isinstance(value, list) else value


def ask(wanted: dict, seen: dict) -> None:
    """Ask for two equal digests."""
    keys = sorted(wanted.keys() | seen.keys())
    assert {key: seen.get(key) for key in keys} == {key: wanted.get(key) for key in keys}
