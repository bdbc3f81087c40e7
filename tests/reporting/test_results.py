import json
import multiprocessing
import os
import re
import sys
from argparse import Namespace
from functools import partial
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from common import files
from common.errors import UserError
from common.reporting import parts, results
from common.reporting.parts import run_parts
from common.reporting.provenance import provenance
from common.reporting.results import Findings

ABOUT = {"command": "python problem1_perceptual.py", "call_seconds": 1.5}


def write(text, path):
    """Draw a "figure" for tests: write text into a file."""
    path.write_text(text)


def publish(folder, part="1.1", result=None, **told):
    results.publish(folder, part, Findings(result or {}, **told), ABOUT)


def stored(folder):
    return json.loads((folder / "results.json").read_text())


def names(folder):
    """The names of the files in a folder, without its lock and its SHA256SUMS."""
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return sorted(there - {"SHA256SUMS"})


def start(work) -> multiprocessing.Process:
    """Start another process by a fork, so that it need not import anything again."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def exit_codes(processes) -> list[int]:
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


# -------------------------------------------------------------------------------- what is stored


def test_one_part_replaces_its_own_key_alone(tmp_path):
    publish(tmp_path, "1.2", {"a": 1})
    publish(tmp_path, "1.1", {"command": "found"})
    publish(tmp_path, "1.2", {"c": float("inf"), "d": (1, 2)})
    parts = stored(tmp_path)["parts"]
    assert parts == {
        "1.1": {"command": "found", "provenance": ABOUT},  # its "command" stays
        "1.2": {"c": None, "d": [1, 2], "provenance": ABOUT},
    }
    assert list(parts) == ["1.1", "1.2"]
    assert results.read(tmp_path)["parts"] == parts


def test_provenance_says_command_commit_and_machine(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/problem1_perceptual.py", "--image", "a b.png"])
    about = provenance(3, 1.5, data="one image", precision=None)
    assert about["command"] == "python problem1_perceptual.py --image 'a b.png'"
    assert (about["seed"], about["call_seconds"], about["data"]) == (3, 1.5, "one image")
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", about["git_commit"] or "0" * 40)
    assert about["environment"]["torch"].startswith("2.")
    assert about["environment"]["processor"]


def test_files_of_a_part_without_their_record_are_all_named_before_any_work(tmp_path):
    for name in ("1.1_b.png", "1.1_a.txt", "1.2_c.txt", "my 1.1_notes.txt"):
        (tmp_path / name).touch()
    assert results.open_folder(tmp_path, ["1.3"]) == tmp_path
    with pytest.raises(UserError, match=r": 1\.1_a\.txt, 1\.1_b\.png in the way, .* move these"):
        results.open_folder(tmp_path, ["1.1"])
    files.save_json(tmp_path / "results.json", {"files": {}, "parts": {}})
    assert results.open_folder(tmp_path, ["1.1"]) == tmp_path


# A part that runs again removes the files of its earlier run, so their names are checked.
@pytest.mark.parametrize("files_of_parts", [["../mine"], ["/mine"], ["a/b"]])
def test_another_file_in_the_place_of_the_results_is_left_alone(tmp_path, files_of_parts):
    text = json.dumps({"files": {"1.1": files_of_parts}, "parts": {}})
    (tmp_path / "results.json").write_text(text)
    files.record(tmp_path / "results.json")
    with pytest.raises(UserError, match=r"results\.json"):
        results.open_folder(tmp_path)
    assert (tmp_path / "results.json").read_text() == text


def test_each_part_is_published_before_the_next_one_runs(tmp_path, capsys):
    def part_a(shared):
        """The first part."""
        return Findings({"found": shared})

    def part_b(shared):
        """The second part."""
        assert stored(tmp_path)["parts"]["1.1"]["found"] == shared
        raise KeyboardInterrupt

    args = Namespace(parts=["1.1", "1.2"], seed=3, out=tmp_path)
    parts = {"1.1": part_a, "1.2": part_b}
    with pytest.raises(KeyboardInterrupt):
        run_parts(parts, args, tmp_path, 7, {"1.1": 100, "1.2": 0}.get, lambda: {"data": "D"})
    provenance = stored(tmp_path)["parts"]["1.1"]["provenance"]
    assert (provenance["data"], provenance["seed"]) == ("D", 3)
    assert provenance["call_seconds"] >= 0
    told = capsys.readouterr().out
    assert told.startswith("\n== 1.1 The first part (about 2 min)\n")
    assert "\n== 1.2 The second part\n" in told


def test_tables_are_printed_and_kept_texts_and_figures_kept_alone(tmp_path, capsys):
    told = {
        "texts": {"1.1.csv": b"a,b\r\n", "1.1.md": "a"},
        "figures": {"1.1.png": partial(write, "drawn")},
    }
    publish(tmp_path, tables={"1.1_losses.txt": "loss  raw\n"}, **told)
    assert (tmp_path / "1.1_losses.txt").read_text() == "loss  raw\n"
    assert (tmp_path / "1.1.csv").read_bytes() == b"a,b\r\n"
    assert (tmp_path / "1.1.md").read_text() == "a"
    assert (tmp_path / "1.1.png").read_text() == "drawn"
    assert stored(tmp_path)["files"] == {"1.1": ["1.1.csv", "1.1.md", "1.1.png", "1.1_losses.txt"]}
    printed = capsys.readouterr().out
    assert "loss  raw" in printed
    assert "a,b" not in printed
    assert printed.endswith("results.json [1.1] in 1.5 s\n")


def test_sums_are_of_what_is_read_back(tmp_path):
    listing = b"path,sha256\r\na.png,00\r\n"
    publish(tmp_path, tables={"1.1.txt": "1"}, texts={"1.1_manifest.csv": listing, "1.1.csv": b""})
    sums = (tmp_path / "SHA256SUMS").read_text().split()[1::2]
    assert sums == ["1.1_manifest.csv", "results.json"]
    assert files.load(tmp_path / "1.1_manifest.csv") == listing
    publish(tmp_path, tables={"1.1.txt": "1"})
    assert (tmp_path / "SHA256SUMS").read_text().split()[1::2] == ["results.json"]


def test_a_rerun_replaces_its_files_and_removes_those_it_does_not_make_again(tmp_path, capsys):
    publish(tmp_path, "1.2", tables={"1.2.txt": "other part"})
    publish(tmp_path, "1.1", tables={"1.1_a.txt": "old", "1.1_b.txt": "old"})
    (tmp_path / "1.1_mine.txt").write_text("the user's")
    publish(tmp_path, "1.1", tables={"1.1_a.txt": "new"})
    assert names(tmp_path) == ["1.1_a.txt", "1.1_mine.txt", "1.2.txt", "results.json"]
    assert (tmp_path / "1.1_a.txt").read_text() == "new"
    assert "removed" in capsys.readouterr().out
    assert stored(tmp_path)["files"] == {"1.1": ["1.1_a.txt"], "1.2": ["1.2.txt"]}


@pytest.mark.parametrize("recorded", [False, True])
def test_a_file_that_is_not_the_parts_own_is_named_and_left(tmp_path, recorded):
    if recorded:
        publish(tmp_path, "1.2", tables={"1.1.txt": "another part's"})
    else:
        (tmp_path / "1.1.txt").write_text("the user's")
    before = (tmp_path / "1.1.txt").read_text()
    with pytest.raises(UserError, match=r"1\.1\.txt"):
        publish(tmp_path, tables={"1.1.txt": "new"}, texts={"1.1_new.txt": "new"})
    assert (tmp_path / "1.1.txt").read_text() == before
    assert "1.1_new.txt" not in names(tmp_path)


def test_a_run_killed_while_it_writes_does_not_stand_in_its_own_way(tmp_path):
    publish(tmp_path, "1.1", {"a": 1}, tables={"1.1_old.txt": "old"})
    killed = {"1.1_z.png": lambda _: os._exit(9)}
    told = {"tables": {"1.1_a.txt": "half"}, "figures": killed}
    assert exit_codes([start(lambda: publish(tmp_path, "1.1", {"a": 2}, **told))]) == [9]
    assert (tmp_path / "1.1_a.txt").read_text() == "half"
    assert stored(tmp_path)["parts"]["1.1"] == {"a": 1, "provenance": ABOUT}
    publish(tmp_path, "1.1", {"a": 3}, tables={"1.1_b.txt": "whole"})
    assert names(tmp_path) == ["1.1_b.txt", "results.json"]
    assert stored(tmp_path)["files"] == {"1.1": ["1.1_b.txt"]}


def publish_often(folder, part, name):
    for number in range(20):
        told = {f"{part}_{name}{number}.txt": name}
        publish(folder, part, {"by": name, "number": number}, tables=told)


def test_several_processes_at_once_lose_nothing_of_each_other(tmp_path):
    writers = [("1.1", "a"), ("1.2", "b"), ("1.2", "c")]
    running = [start(partial(publish_often, tmp_path, *writer)) for writer in writers]
    assert exit_codes(running) == [0, 0, 0]
    last = stored(tmp_path)
    assert last["parts"]["1.1"]["number"] == last["parts"]["1.2"]["number"] == 19
    name = last["parts"]["1.2"]["by"]
    assert last["files"] == {"1.1": ["1.1_a19.txt"], "1.2": [f"1.2_{name}19.txt"]}
    assert names(tmp_path) == ["1.1_a19.txt", f"1.2_{name}19.txt", "results.json"]


def test_only_the_first_process_of_a_job_prints_draws_and_writes(tmp_path, capsys, place):
    place(1, 2)
    drawn = []
    publish(tmp_path, tables={"1.1.txt": "text"}, figures={"1.1.png": drawn.append})
    assert not drawn
    assert names(tmp_path) == []
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------ the TensorBoard log


def test_without_the_package_a_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(parts.importlib.util, "find_spec", lambda _: None)
    args = Namespace(parts=["1.1"], tensorboard=True)
    with pytest.raises(UserError, match="python -m pip install tensorboard"):
        run_parts({}, args, None, None, None, None)


def test_scalars_and_figures_are_those_of_the_result(tmp_path, monkeypatch):
    package = MagicMock()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    histories = [[{"epoch": 1, "val_loss": 2.5, "val_top1": None}], [{"epoch": 1, "val_loss": 3.0}]]
    runs = [{"seed": seed, "history": history} for seed, history in enumerate(histories, 5)]
    result = {"runs": {"wide": {"runs": runs}}}
    draw = Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save
    findings = Findings(result, figures={"2.3_x.png": lambda path: draw(path, "PNG")})
    results.publish(tmp_path, "2.3", findings, {"call_seconds": 1})
    parts.write_tensorboard(tmp_path)
    places = [call.args[0].rpartition("/")[2] for call in package.SummaryWriter.call_args_list]
    assert places == ["2.3 wide seed 5", "2.3 wide seed 6", "2.3 figures"]
    writer = package.SummaryWriter.return_value.__enter__.return_value
    scalars = [call.args for call in writer.add_scalar.call_args_list]
    assert scalars == [("val_loss", 2.5, 1), ("val_loss", 3.0, 1)]
    (name, pixels), _ = writer.add_image.call_args
    assert (name, pixels.shape) == ("2.3_x.png", (4, 6, 3))
