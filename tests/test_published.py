from argparse import Namespace

import pytest

import problem1_perceptual as p1
import problem2_flowers as p2
import problem3_resnet36 as p3
from benchmarks import published

PARSERS = {"problem1": p1, "problem2": p2, "problem3": p3}
ARGS = Namespace(flowers="F", originals="O", imagenet="I", hundred="H", device="cpu", jobs=2)


@pytest.mark.parametrize("run", published.RUNS, ids=lambda run: run.name)
def test_each_command_is_one_that_its_script_takes(run):
    words = published.run_words(run, ARGS)
    args = PARSERS[words[0].split("_")[0]].make_parser().parse_args(words[1:])
    assert run.part in args.parts


def test_a_result_of_other_flags_is_not_taken_for_it(monkeypatch):
    run = published.Published("x", "f", 1, "p.py 2.2 --data-root {flowers} --epochs 9")
    for made_with, wanted in (
        ("python p.py 2.2 --data-root D --epochs 9 --jobs 2", True),
        ("python p.py 2.2 --data-root D --epochs 8", False),
    ):
        parts = {"2.2": {"provenance": {"command": made_with}}}
        monkeypatch.setattr(published.results, "read", lambda _, parts=parts: {"parts": parts})
        assert run.is_made() is wanted
