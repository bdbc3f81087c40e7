import argparse
import shutil

import pytest

import problem3_resnet36
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


@pytest.mark.parametrize("split", [(0.7, 0.2, 0.2), (1, 0, 0)])
def test_a_split_that_is_none_is_refused_before_anything_is_drawn(split):
    for data in ("a", "synthetic"):
        with pytest.raises(UserError, match="must be above 0 and sum to 1"):
            prototype.check_flags(parse("--data", data, "--split", *split), ["3.1"])


def test_parts_that_need_data_say_so_and_others_do_not():
    with pytest.raises(UserError, match=r"part 3\.4 needs --data DIR"):
        prototype.check_flags(parse(), ["3.4"])
    prototype.check_flags(parse(), [])


def test_one_may_work_in_the_datas_own_folder(run, class_folders, monkeypatch):
    monkeypatch.chdir(class_folders)
    command = (problem3_resnet36, "3.1", "--data", ".", "--per-class", 6)
    manifests = []
    for flags in ((), (), ("--out", "."), ("--out", ".")):
        code, out, err = run(*command, *flags)
        assert (code, err) == (0, ""), out
        folder = class_folders / ("problem3" if flags else "outputs/problem3")
        manifests.append((folder / "3.1_manifest.csv").read_bytes())
        if len(manifests) == 2:
            shutil.rmtree(class_folders / "outputs")
    assert len(set(manifests)) == 1
