import json
import subprocess
import sys

import pytest

import problem1_perceptual as p1
from common import cli


def test_list_names_the_parts(run):
    code, out, _ = run(p1, "--list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["1.1", "1.2", "1.3"]


def test_help_tells_every_flag_and_its_default(run):
    code, out, _ = run(p1, "--help")
    assert code == 0
    for action in p1.make_parser()._actions:
        assert action.help
        if action.option_strings and action.nargs != 0:
            assert "default" in action.help, action.option_strings
    assert "(default: 25.0)" in out
    assert "0-255 units" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--shfit", "2"], "unknown argument --shfit, did you mean --shift?"),
        (["1.4"], "no part 1.4; the parts are 1.1, 1.2, 1.3"),
        (["--seed", "one"], "'one' is not a whole number"),
        (["--sig", "3"], "unknown argument --sig"),
    ],
)
def test_a_mistyped_flag_or_part_fails_in_one_line(fails, argv, words):
    assert words in fails(p1, *argv)


def test_exit_code_of_the_process_itself():
    done = subprocess.run(
        [sys.executable, cli.ROOT / "problem1_perceptual.py", "1.9"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_parts_run_in_order_and_between_flags():
    args = p1.make_parser().parse_args(["1.3", "--seed", "4", "1.1"])
    assert args.parts == ["1.1", "1.3"]
    assert args.seed == 4
    assert p1.make_parser().parse_args([]).parts == ["1.1", "1.2", "1.3"]


def test_one_part_replaces_its_own_key_alone(tmp_path):
    results = cli.Results(tmp_path)
    results.store("1.2", {"a": 1})
    results.store("1.1", {"b": 2})
    results.store("1.2", {"c": float("inf"), "d": (1, 2)})
    stored = json.loads(results.path.read_text())
    assert stored["parts"] == {"1.1": {"b": 2}, "1.2": {"c": None, "d": [1, 2]}}
    assert stored["environment"]["torch"].startswith("2.")


def test_a_write_that_fails_leaves_the_old_results(tmp_path):
    results = cli.Results(tmp_path)
    results.store("1.1", {"a": 1})
    before = results.path.read_bytes()
    with pytest.raises(TypeError):
        results.store("1.1", {"a": object()})
    assert results.path.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", ".lock"}


def test_another_file_in_the_place_of_the_results_is_not_overwritten(fails, tmp_path):
    path = tmp_path / "problem1" / "results.json"
    path.parent.mkdir()
    path.write_text("my notes")
    assert "move it away" in fails(p1, "1.1", "--out", tmp_path)
    assert path.read_text() == "my notes"


def test_an_unwritable_out_is_refused_before_any_work(fails, tmp_path):
    (tmp_path / "file").write_text("")
    assert "choose another --out" in fails(p1, "1.1", "--out", tmp_path / "file")


def test_a_full_disk_ends_in_one_line(fails, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "show_text", full)
    assert "No space left on device" in fails(p1, "1.1", "--out", tmp_path)


def test_atomic_keeps_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("old")
    with pytest.raises(TypeError), cli.atomic(path) as temporary:
        temporary.write_bytes("a text")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
