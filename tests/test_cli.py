import argparse

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
        (["--shfit", "2"], "unknown argument --shfit; did you mean --shift?"),
        (["1.4"], "no part 1.4; the parts are 1.1, 1.2, 1.3"),
        (["--seed", "one"], "'one' is not a whole number"),
        (["--sig", "3"], "unknown argument --sig"),
    ],
)
def test_a_mistyped_flag_or_part_fails_in_one_line(fails, argv, words):
    assert words in fails(p1, *argv)


def test_parts_run_in_order_and_between_flags():
    args = p1.make_parser().parse_args(["1.3", "--seed", "4", "1.1"])
    assert args.parts == ["1.1", "1.3"]
    assert args.seed == 4
    assert p1.make_parser().parse_args([]).parts == ["1.1", "1.2", "1.3"]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (cli.whole, {"0": 0, "7": 7}, ["-1", "1.5", "one", ""]),
        (cli.positive, {"1": 1}, ["0", "-3", "2.0"]),
        (cli.seed, {"0": 0, str(2**63 - 1): 2**63 - 1}, [str(2**63), "-1"]),
        (cli.at_least(3), {"3": 3}, ["2", "x"]),
        (cli.non_negative, {"0": 0.0, "2.5": 2.5}, ["-0.1", "inf", "nan"]),
        (cli.up_to(8), {"1e-9": 1e-9, "8": 8.0}, ["0", "-1", "8.1", "1e20", "inf", "nan"]),
        (cli.fraction, {"0": 0.0, "0.5": 0.5, "1": 1.0}, ["-0.1", "1.1", "nan"]),
    ],
)
def test_argument_types(kind, good, bad):
    assert {text: kind(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
            kind(text)
