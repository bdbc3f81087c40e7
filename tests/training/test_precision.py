import pytest
import torch
from torch import nn

from common.training import precision
from common.training.precision import Example, choose_precision

CPU = torch.device("cpu")
STEP = Example(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)), 4, 8, CPU)


@pytest.fixture
def measured(monkeypatch):
    """Pretend that a step in bf16 takes so many times as long as one in fp32."""

    def pretend(bf16_seconds):
        monkeypatch.setattr(Example, "seconds", lambda *_: {"fp32": 1.0, "bf16": bf16_seconds})

    return pretend


@pytest.mark.parametrize(
    ("bf16_seconds", "name", "gain"),
    [(2.0, "fp32", "0.50"), (0.5, "bf16", "2.00"), (0.95, "fp32", "1.05")],
)
def test_auto_chooses_what_is_measured_to_be_faster(measured, capsys, bf16_seconds, name, gain):
    measured(bf16_seconds)
    chosen = choose_precision("auto", STEP)
    assert chosen.name == name
    assert chosen.why == f"a step in bf16 is {gain} times as fast as in fp32"
    assert capsys.readouterr().out == f"precision: {name}, {chosen.why}\n"


def test_where_nothing_is_trained_nothing_is_measured(capsys):
    assert choose_precision("bf16", None) == precision.Precision("bf16", "asked for")
    assert choose_precision("auto", None) == precision.Precision("fp32", "nothing is trained")
    assert not capsys.readouterr().out


def test_the_measurement_leaves_no_trace():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert all(taken > 0 for taken in STEP.seconds("fp32", "bf16").values())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
