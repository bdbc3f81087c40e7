import subprocess
import sys
from dataclasses import replace

import pytest
import test_training as tiny
import torch
from torch import nn

from common import cli, parallel, training
from common.augment import Augmentation
from common.cli import UserError

CPU = torch.device("cpu")


def quiet_network():
    """Batch norm in eval mode and no dropout: what processes compute alike."""
    net = tiny.network()
    net[1].eval()
    net[1].train = lambda *_: net[1]
    net[3].p = 0.0
    return net


def one_step(recipe):
    """(gradients after a step on 11 images, loss, evaluation) in this process."""
    parallel.start(CPU)
    run = training.Run(quiet_network(), recipe, CPU)
    training.train_step(run, tiny.packed(), torch.arange(11), 1.5)
    gradients = [one.grad.clone() for one in run.network.parameters()]
    found = training.evaluate(quiet_network(), tiny.packed(), recipe, CPU)
    sums = dict(run.sums)
    parallel.stop()
    return gradients, sums, found


RECIPE = replace(tiny.RECIPE, augmentation=Augmentation(cutmix_prob=0))


@pytest.fixture(scope="module")
def of_two():
    return parallel.launch(2, one_step, RECIPE)


def test_the_gradient_of_two_processes_equals_that_of_one(of_two):
    wanted, sums, _ = one_step(RECIPE)
    for rank in range(2):
        gradients, sums_of_rank, _ = of_two[rank]
        for found, one in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-6)
        assert sums_of_rank["loss"] == pytest.approx(sums["loss"], rel=1e-5)
        assert sums_of_rank["top1"] == sums["top1"]
        assert sums_of_rank["images"] == 11


def test_evaluation_of_two_processes_equals_that_of_one(of_two):
    _, _, wanted = one_step(RECIPE)
    for rank in range(2):
        found = of_two[rank][2]
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
        for key in ("top1", "top5", "correct", "images"):
            assert found[key] == wanted[key]


def test_shares_are_a_partition(monkeypatch):
    for size in (1, 2, 3, 5):
        monkeypatch.setenv("WORLD_SIZE", str(size))
        seen = []
        for rank in range(size):
            monkeypatch.setenv("RANK", str(rank))
            seen += torch.arange(11)[parallel.share()].tolist()
        assert sorted(seen) == list(range(11))


def fit_in(folder, epochs):
    parallel.start(CPU)
    tiny.train(folder, replace(RECIPE, epochs=epochs))
    parallel.stop()


def test_a_checkpoint_of_two_processes_loads_in_one_and_goes_on(tmp_path):
    parallel.launch(2, fit_in, tmp_path, 2)
    saved = tiny.state(tmp_path)
    assert set(saved["network"]) == set(tiny.network().state_dict())  # no "module." before names
    assert saved["epoch"] == 2
    net = tiny.network()
    net.load_state_dict(tiny.state(tmp_path, "best.pt")["network"])
    net, history = tiny.train(tmp_path, replace(RECIPE, epochs=2))
    assert len(history) == 2


def die_as_rank_1(folder):
    parallel.start(CPU)
    step = training.train_step

    def dying(run, *args):
        if cli.rank() == 1 and run.epoch == 1:
            sys.exit(9)
        step(run, *args)

    training.train_step = dying
    tiny.train(folder, replace(RECIPE, epochs=50))


def test_a_process_that_dies_ends_the_job(tmp_path):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with pytest.raises(ChildFailedError):
        parallel.launch(2, die_as_rank_1, tmp_path)
    assert tiny.state(tmp_path)["epoch"] == 1  # what was saved before stays


@pytest.mark.skipif(torch.cuda.device_count() > 8, reason="there are nine GPUs here")
def test_more_gpus_than_there_are():
    with pytest.raises(UserError, match=r"--gpus 9: torch sees \d here"):
        parallel.pick_device("auto", 9)


def test_one_process_sees_the_network_itself():
    net = nn.Linear(1, 1)
    assert parallel.wrap(net, CPU, 0) is net


def test_data_parallel_is_asked_for_by_gpus(monkeypatch, capsys):
    made = {}
    monkeypatch.setattr(nn, "DataParallel", lambda _, device_ids: made.update(ids=device_ids))
    parallel.wrap(nn.Linear(1, 1), torch.device("cuda"), 2)
    assert made == {"ids": [0, 1]}
    assert "torch recommends DistributedDataParallel" in capsys.readouterr().out


def test_torchrun_with_more_processes_than_images(tmp_path):
    flags = ("--data", "synthetic", "--classes", "2", "--images-per-class", "1")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "3", str(cli.ROOT / "problem2_flowers.py"), "2.2", *flags),
            *("--image-size", "32", "--epochs", "1"),
            *("--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("problem2_flowers.py")]
    assert ours == ["problem2_flowers.py: error: torchrun: 3 processes for 2 images; start fewer"]
    assert "exitcode  : 2" in done.stderr
