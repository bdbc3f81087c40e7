import argparse

import pytest

from common.cli import Parser
from common.data import prototype
from common.errors import UserError


def parse(*argv):
    parser = Parser("")
    prototype.add_flags(parser)
    return parser.parse_args([*map(str, argv)])


def test_a_data_set_is_named_by_its_folder_or_said_to_be_embedded():
    assert prototype.name(parse("--data", "imagenet-10")) == "imagenet-10"
    assert prototype.name(parse("--data", "/data/imagenet-10/train")) == "imagenet-10/train"
    assert prototype.name(parse("--data", "synthetic")) == "EMBEDDED DRAWN FLOWERS, 10 classes"
    assert prototype.name(parse()) == "no data"


@pytest.mark.parametrize(
    "flags", [("--classes", 3), ("--per-class", 6), ("--allow-fewer",), ("--split", 0.6, 0.2, 0.2)]
)
def test_a_manifest_answers_what_is_drawn_but_not_of_embedded_data(flags):
    args = parse("--data", "a", "--manifest", "m.csv", *flags)
    with pytest.raises(UserError, match=f"{flags[0]}: --manifest says what was drawn"):
        prototype.check_flags(args, ["3.1"])
    prototype.check_flags(argparse.Namespace(**{**vars(args), "data": "synthetic"}), ["3.1"])
    prototype.check_flags(parse("--data", "a", "--manifest", "m.csv"), ["3.1"])


def test_shares_are_above_0_and_sum_to_1():
    for split in [(0.7, 0.2, 0.2), (1, 0, 0)]:
        with pytest.raises(UserError, match=r"--split .*: three shares above 0 that sum to 1"):
            prototype.check_flags(parse("--data", "a", "--split", *split), [])
    # Their float sum is not exactly 1.
    prototype.check_flags(parse("--data", "a", "--split", 0.7, 0.2, 0.1), [])
