import torch

from common.networks.timing import PeakMemory, compare_costs


def test_peak_memory_counts_what_is_held_at_once():
    x = torch.zeros(1000)
    with PeakMemory() as memory:
        a = x + 1  # held
        for _ in range(3):
            b = a * 2
            del b
        a.add_(1)  # nothing new
    assert memory.peak == 8000
    del a
    assert memory.held == 0


def test_a_storage_that_views_share_counts_once():
    x = torch.zeros(1000)
    with PeakMemory() as memory:
        a = x + 1
        views = a.view(10, 100), a[:500], x.view(100, 10)
    assert memory.peak == 4000
    assert len(views) == 3


def test_costs_of_relu_and_its_where_form():
    calls = []

    def where(x):
        calls.append(x.requires_grad)
        return torch.where(x > 0, x, 0)

    x = torch.randn(16, 64)
    costs = compare_costs({"ReLU": torch.relu, "where": where}, x, repeats=3)
    assert costs.keys() == {"seconds", "bytes"}
    assert costs["bytes"]["ReLU"] == 2 * 4 * x.numel()  # the result and the gradient
    assert costs["bytes"]["where"] > costs["bytes"]["ReLU"]
    assert min(costs["seconds"].values()) > 0
    assert calls == [True] * (2 + 3 + 1)  # warm-up, timed, and once for the memory
    assert not x.requires_grad
