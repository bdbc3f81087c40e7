import shlex
import sys
from argparse import Namespace

import pytest

import problem1_perceptual as p1
import problem2_flowers as p2
import problem3_resnet36 as p3
from benchmarks import published
from common.errors import UserError

PARSERS = {"problem1": p1, "problem2": p2, "problem3": p3}
ARGS = Namespace(flowers="F", originals="O", imagenet="I", hundred="H", device="cpu", jobs=2)


@pytest.mark.parametrize("run", published.RUNS, ids=lambda run: run.name)
def test_each_command_is_one_that_its_script_takes(run):
    words = published.run_words(run, ARGS)
    args = PARSERS[words[0].split("_")[0]].make_parser().parse_args(words[1:])
    assert run.part in args.parts


def test_names_are_unique():
    names = [run.name for run in published.RUNS]
    assert len(set(names)) == len(names)


def test_a_result_of_other_flags_is_not_taken_for_it(monkeypatch):
    run = published.Published("x", "p.py 2.2 --data-root {flowers} --epochs 9", "2.2", "f", 1)
    for made_with, wanted in (
        ("python p.py 2.2 --data-root D --epochs 9 --jobs 2", True),
        ("python p.py 2.2 --data-root D --epochs 8", False),
    ):
        parts = {"2.2": {"provenance": {"command": made_with}}}
        monkeypatch.setattr(published.results, "read", lambda _, parts=parts: {"parts": parts})
        assert run.is_made() is wanted


def test_a_run_is_stopped_in_time(tmp_path, monkeypatch):
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\n"
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    open(sys.argv[-1] + 'saved', 'w').close()\n"
    )
    monkeypatch.setattr(published, "OUT", str(tmp_path / "out"))
    run = published.Published("slow", shlex.quote(str(script)), "2.2", "problem2", 1)
    with pytest.raises(UserError, match="slow: stopped, its time is over"):
        published.make(run, ARGS, seconds=2)
    assert (tmp_path / "outsaved").exists()
    with pytest.raises(UserError, match="the minutes are over"):
        published.make(run, ARGS, seconds=0)


def test_without_run_nothing_is_made(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["published", "2.2"])
    monkeypatch.setattr(published, "make", None)
    published.main()
    assert "problem2_flowers.py 2.2" in capsys.readouterr().out
