"""Values that are not finite: where they are found, and what a job's processes report."""

from dataclasses import replace

import pytest
import torch

from common import job
from common.training import loop, parallel
from common.training.parallel import launch
from common.training.watch import NotFinite
from tests.training import test_loop as tiny

CPU = torch.device("cpu")


def test_an_evaluation_without_a_finite_loss_is_no_result():
    network = tiny.network()
    network[1].running_var.fill_(torch.nan)
    with pytest.raises(NotFinite, match="tiny set: no loss is finite; these weights can't be used"):
        loop.evaluate(network, tiny.packed(), tiny.RECIPE, CPU)


def test_weights_that_decay_until_they_are_not_finite_are_no_result(tmp_path):
    with pytest.raises(NotFinite, match=r"smaller --(lr|weight-decay)"):
        tiny.train(tmp_path, replace(tiny.RECIPE, weight_decay=1e9))


def bad_as_rank_1(folder, direction):
    """Train with a bad value on the second process only: (module, message) of the error raised."""
    parallel.start(CPU)
    network = tiny.network()
    if job.rank() == 1:
        network[2] = tiny.Spoil(direction)
    recipe = replace(tiny.RECIPE, batch_size=6)
    try:
        tiny.fit(network, folder, recipe)
    except NotFinite as error:
        return error.module, str(error)
    finally:
        parallel.stop()
    return None


@pytest.mark.parametrize("direction", ["output", "gradient"])
def test_a_bad_value_in_one_process_stops_all_with_its_place(tmp_path, direction):
    first, second = launch(2, bad_as_rank_1, tmp_path, direction)
    assert first == second
    assert first[0] == "2"
