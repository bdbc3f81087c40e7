"""What the benchmarks count, in what order they time, and how they compare."""

import contextlib
from argparse import Namespace

import pytest
import torch
from torch import nn

import problem1_perceptual as p1
import problem2_flowers as p2
import problem3_resnet36 as p3
from benchmarks import bench, estimate, published
from benchmarks.bench import Bench, Machine, Ways
from common.training.precision import Precision

CPU = torch.device("cpu")
HERE = Machine(CPU, Precision("bf16", "as the test wants it"))


def flops_of_training(convolution: nn.Conv2d, maps: torch.Tensor) -> int:
    with bench.flop_counter() as counter:
        convolution(maps.requires_grad_()).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_backward_pass_takes_twice_a_forward_pass_whatever_the_groups(kind, groups):
    convolution = kind(8, 8, 3, stride=2, padding=1, groups=groups, bias=False)
    maps = torch.rand(2, 8, 6, 6)
    side = (6 if kind is nn.ConvTranspose2d else 3) ** 2
    forward = 2 * 2 * side * 9 * 8 * 8 // groups
    assert flops_of_training(convolution, maps) == 3 * forward
    assert bench.forward_flops(convolution, 2, 8, 6, 6) == forward


def test_ways_take_turns_there_and_back():
    calls = []
    ways = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "abc"}
    numbers = bench.in_turn(ways, repeats=2, warm_ups=1)
    assert "".join(calls) == "abccbaabc"
    assert numbers == {"a": [6, 7], "b": [5, 8], "c": [4, 9]}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Do not call psutil, which only `make bench` installs."""
    monkeypatch.setattr(bench, "busy_cores", lambda: 0.0)


def measured(wanted: dict, ways: Ways | str) -> dict:
    def make(_machine):
        yield ways

    benchmark = Bench("name", "title", wanted, contextlib.contextmanager(make), repeats=3)
    return bench.measure(benchmark, HERE)


def test_a_record_compares_each_peer_within_its_rounds():
    ours, theirs = iter([9.0, 1.0, 2.0, 4.0]), iter([9.0, 3.0, 4.0, 4.0])
    HERE.__dict__["peaks"] = {"memory copy": 10.0}
    ways = Ways(
        lambda: next(ours),
        {"peer": lambda: next(theirs), "limit": 8.0},
        not_measured={"gpu": "not run on a GPU"},
        work=5,
        peak="memory copy",
    )
    wanted = {"peer": {"bf16": 2.5, "AVX2": 1}, "limit": 1.0, "gpu": None, bench.PEAK: 0.5}
    record = measured(wanted, ways)
    assert record["numbers"] == {"ours": [1, 2, 4], "peer": [3, 4, 4]}
    peer, limit, gpu, peak = record["rows"]
    assert peer == {"against": "peer", "ratio": 2, "low": 1, "high": 3, "wanted": 2.5}
    assert limit["ratio"] == 4
    assert gpu == {"against": "gpu", "why_not": "not run on a GPU", "wanted": None}
    assert (peak["ratio"], peak["low"], peak["high"]) == (0.25, 0.125, 0.5)


JOB = estimate.Job(
    images=1000,
    batch_a_gpu=10,
    flops_an_image=2e9,
    parameters=250,
    gpu_peak=1e10,
    share_of_peak=0.5,
    nvlink=1000,
    network=100,
    disk=1e5,
    gpus_a_node=2,
    cores_a_gpu=4,
    decoded_a_core=5,
    image_bytes=1000,
)


def test_the_estimate_adds_up():
    row = JOB.row(1)
    assert (row["compute"], row["all_reduce"], row["reading"]) == (4, 0, 0.1)
    assert (row["bottleneck"], row["epoch_minutes"]) == ("compute", 100 * 4 / 60)
    assert row["packing_minutes"] == 1000 / 20 / 60
    two = JOB.row(2)
    assert (two["all_reduce"], two["data_parallel"], two["reading"]) == (1, 2, 0.2)
    assert two["epoch_minutes"] == 50 * 4 / 60
    # A ring over nodes is as fast as its slowest link, and images are read in each node.
    four = JOB.row(4)
    assert (four["all_reduce"], four["reading"]) == (15, 0.2)
    assert (four["bottleneck"], four["data_parallel"]) == ("all-reduce", None)
    assert four["epoch_minutes"] == 25 * 15 / 60


# ----------------------------------------------------------------------- the list of published runs


PARSERS = {"problem1": p1, "problem2": p2, "problem3": p3}
ARGS = Namespace(flowers="F", originals="O", imagenet="I", hundred="H", device="cpu", jobs=2)


@pytest.mark.parametrize("run", published.RUNS, ids=lambda run: run.name)
def test_each_command_is_one_that_its_script_takes(run):
    words = published.run_words(run, ARGS)
    args = PARSERS[words[0].split("_")[0]].make_parser().parse_args(words[1:])
    assert set(published.words_and_flags(run.command)[0][1:] or ["1.3"]) <= set(args.parts)


def test_a_result_of_other_flags_is_not_taken_for_it(monkeypatch):
    run = published.Published("x", "f", 1, "p.py 2.2 2.5 --data-root {flowers} --epochs 9")
    for made_with, made, wanted in (
        ("python p.py 2.2 --data-root D --epochs 9 --jobs 2", ["2.2", "2.5"], True),
        ("python p.py 2.2 --data-root D --epochs 9 --jobs 2", ["2.2"], False),
        ("python p.py 2.2 --data-root D --epochs 8 --seeds 9", ["2.2", "2.5"], False),
    ):
        parts = {part: {"provenance": {"command": made_with}} for part in made}
        monkeypatch.setattr(published.results, "read", lambda _, parts=parts: {"parts": parts})
        assert run.is_made() is wanted
