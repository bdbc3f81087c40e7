import json
import math
import multiprocessing
import os
import subprocess
import time
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from common import files
from common.errors import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded_and_told_apart_by_its_sha256(tmp_path):
    path = tmp_path / "state.pt"
    sha256 = files.save(path, b"\x00bytes")
    assert files.load(path) == b"\x00bytes"
    assert sha256 == files.sha256_of(path)
    assert sha256 == files.save(tmp_path / "again", lambda file: file.write(b"\x00bytes"))
    assert sha256 != files.save(path, "text, \N{GREEK SMALL LETTER PI}")
    assert files.load(path).decode() == "text, \N{GREEK SMALL LETTER PI}"
    assert names(tmp_path) == ["SHA256SUMS", "again", "state.pt"]
    by_tool = subprocess.run(
        ["sha256sum", "-c", files.SUMS], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert by_tool.stdout == "again: OK\nstate.pt: OK\n"


def test_a_file_that_was_changed_is_refused_by_name(tmp_path):
    path = tmp_path / "a.json"
    files.save_json(path, {"a": [1, 2]})
    files.save(tmp_path / "other", "content")
    whole, sums = path.read_bytes(), (tmp_path / files.SUMS).read_bytes()
    for target, content in ((path, whole), (tmp_path / files.SUMS, sums)):
        for place in range(10):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            target.write_bytes(flipped)
            for read in (files.load, files.load_json, files.check):
                with pytest.raises(UserError, match=r"a\.json: (damaged or changed|not listed)"):
                    read(path)
        target.write_bytes(content)
    for damaged in (b"", whole[:-1], whole + b"\n"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"its SHA-256 differs from that in SHA256SUMS"):
            files.load(path)
    assert files.record(path) == files.check(path)  # as if the user had added the line
    assert files.load(path) == whole + b"\n"


def test_a_process_killed_while_it_writes_leaves_a_file_that_can_be_loaded(tmp_path, monkeypatch):
    killed, path = Mock(side_effect=KeyboardInterrupt), tmp_path / "a"
    files.save(path, "old")
    for write in (killed, partial(save_with_pytorch, KeyboardInterrupt)):
        with pytest.raises(KeyboardInterrupt):
            files.save(path, write)
        assert files.load(path) == b"old"
    for module, name in ((os, "replace"), (files, "sha256_of")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, killed)
            with pytest.raises(KeyboardInterrupt):
                files.save(path, "new")
        assert files.load(path) == b"old"


def save_with_pytorch(error, file):
    """torch.save, whose second write fails: it hides the error behind a RuntimeError."""
    file.write = Mock(side_effect=[None, error, *9 * [None]])
    torch.save(torch.zeros(2), file)


def test_a_full_disk_names_the_file(tmp_path):
    full = OSError(28, "No space left on device")
    for write in (Mock(side_effect=full), partial(save_with_pytorch, full)):
        with pytest.raises(
            UserError, match=r"b\.png: cannot be written \(No space left.*; free space"
        ):
            files.save(tmp_path / "b.png", write)


def test_atomic_shows_the_new_file_only_when_it_is_whole(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("old")
    with files.atomic(path) as temporary:
        assert temporary.suffix == ".png"  # the suffix decides a figure's format
        temporary.write_text("ne")
        assert path.read_text() == "old"
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["figure.png"]


def test_json_has_plain_values_and_no_nan(tmp_path):
    value = {
        1: (np.float32(0.5), np.int64(3)),
        "tensor": torch.tensor([1.0, math.inf]),
        "array": np.array([[1, 2]]),
        "nested": [{"nan": math.nan}, None, "text", True],
    }
    files.save_json(tmp_path / "a.json", value)
    stored = json.loads(files.load(tmp_path / "a.json"))
    assert stored == {
        "1": [0.5, 3],
        "tensor": [1.0, None],
        "array": [[1, 2]],
        "nested": [{"nan": None}, None, "text", True],
    }


def append(path, folder):
    with files.locked(folder, "appends"):
        before = path.read_text()
        time.sleep(0.02)
        path.write_text(before + "x")


def test_a_lock_lets_one_process_in_at_a_time(tmp_path):
    path = tmp_path / "text"
    path.write_text("")
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=append, args=(path, tmp_path)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert path.read_text() == "xxx"


def test_a_cached_folder_is_filled_once(tmp_path):
    filled = []

    def fill(folder):
        filled.append(folder)
        (folder / "a").write_text("content")

    for _ in range(2):
        folder = files.cached_folder(tmp_path / "cache", "flowers", fill)
        assert folder == tmp_path / "cache" / "flowers"
        assert (folder / "a").read_text() == "content"
    assert len(filled) == 1
    assert filled[0] != folder
    assert folder.stat().st_mode == folder.parent.stat().st_mode  # a group may read it, for example


def test_a_folder_that_was_not_filled_to_the_end_is_never_there(tmp_path):
    def fail(folder):
        (folder / "half").write_text("")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        files.cached_folder(tmp_path, "flowers", fail)
    assert names(tmp_path) == [".lock"]
    (tmp_path / ".unfinished-folder").mkdir()
    (tmp_path / "mine").mkdir()
    files.cached_folder(tmp_path, "flowers", lambda folder: (folder / "a").touch())
    assert names(tmp_path) == [".lock", "flowers", "mine"]
