import json
import math
import multiprocessing
import os
import re
import time

import numpy as np
import pytest
import torch

from common import errors, files, job
from common.errors import UserError

# ----------------------------------------------------------------------------------------- files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded_and_told_apart_by_its_sha256(tmp_path):
    path = tmp_path / "state.pt"
    sha256 = files.save(path, b"\x00bytes")
    assert files.load(path) == b"\x00bytes"
    assert sha256 == files.sha256_of(path)
    assert sha256 == files.save(tmp_path / "again", memoryview(b"\x00bytes"))
    assert sha256 != files.save(path, "text, \N{GREEK SMALL LETTER PI}")
    assert files.load(path).decode() == "text, \N{GREEK SMALL LETTER PI}"
    assert names(tmp_path) == ["again", "state.pt"]


def test_loading_what_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.load(tmp_path / "none")


def test_atomic_keeps_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("old")
    with pytest.raises(TypeError), files.atomic(path) as temporary:
        temporary.write_bytes("a text")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["figure.png"]


def test_atomic_shows_the_new_file_only_when_it_is_whole(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("old")
    with files.atomic(path) as temporary:
        assert temporary.suffix == ".png"  # what draws a figure goes by it
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


def test_a_folder_that_cannot_be_written_to_is_refused_by_its_flag(tmp_path):
    assert files.make_folder(tmp_path / "new" / "deep").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file: .*; choose another --cache"):
        files.make_folder(tmp_path / "file", flag="--cache")


def append(path, folder):
    with files.locked(folder):
        before = path.read_text()
        time.sleep(0.02)
        path.write_text(before + "x")


def test_a_lock_lets_one_process_in_at_a_time(tmp_path):
    path = tmp_path / "text"
    path.write_text("")
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=append, args=(path, tmp_path)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert path.read_text() == "xxxx"


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


def test_a_folder_that_was_not_filled_to_the_end_is_never_there(tmp_path):
    def fail(folder):
        (folder / "half").write_text("")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        files.cached_folder(tmp_path, "flowers", fail)
    assert names(tmp_path) == [".lock"]
    (tmp_path / ".unfinished-folder-of-a-killed-run").mkdir()
    (tmp_path / "mine").mkdir()
    files.cached_folder(tmp_path, "flowers", lambda folder: (folder / "a").touch())
    assert names(tmp_path) == [".lock", "flowers", "mine"]


# ------------------------------------------------------------------------------------------- job


def test_a_process_by_itself_is_the_first_of_one(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (job.rank(), job.size(), job.is_first()) == (0, 1, True)
    job.say("a", "b")
    assert capsys.readouterr().out == "a\nb\n"


def test_the_first_process_alone_speaks(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert (job.rank(), job.size()) == (rank, 3)
        job.say(f"rank {rank}")
        assert list(job.progress(range(3), "counting")) == [0, 1, 2]
    said = capsys.readouterr()
    assert said.out == "rank 0\n"
    assert said.err == ""  # no terminal, no bar


# ----------------------------------------------------------------------------------------- guard


def guarded(error, capsys):
    """(exit code, stderr) of a main that raises."""

    def main():
        raise error

    code = errors.guard(main)
    return code, capsys.readouterr().err


def test_a_main_that_ends_well_has_exit_code_0(capsys):
    assert errors.guard(lambda: None) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("--seed: no; try 1"), 2, "error: --seed: no; try 1"),
        (OSError(28, "No space left on device"), 2, "No space left on device; free space or"),
        (PermissionError(13, "Permission denied", "a.txt"), 2, "'a.txt'; see to its permissions"),
        (KeyboardInterrupt(), 130, "stopped; results of finished parts are kept"),
        (KeyboardInterrupt("the run is saved"), 130, "stopped; the run is saved"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(error, code, words, capsys):
    ended, said = guarded(error, capsys)
    assert ended == code
    assert re.fullmatch(r"[^\n]*: [^\n]*\n", said)
    assert words in said


def test_an_error_of_the_program_keeps_its_traceback(capsys):
    with pytest.raises(ZeroDivisionError):
        guarded(ZeroDivisionError(), capsys)
    with pytest.raises(FileNotFoundError):
        guarded(FileNotFoundError(2, "No such file", "a.txt"), capsys)


def test_a_closed_pipe_is_no_error(monkeypatch, capsys):
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(os, "open", lambda *_: 1)
    monkeypatch.setattr("sys.stdout.fileno", lambda: 1, raising=False)
    assert guarded(BrokenPipeError(), capsys) == (141, "")


def test_before_they_have_joined_the_processes_of_a_job_complain_once(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert guarded(UserError("no"), capsys) == (2, "")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert "error: no" in guarded(UserError("no"), capsys)[1]
