"""Running sums: exact, both ways, whatever the length."""

from __future__ import annotations

import pytest
import torch

from lit_simplified.blocks import scan
from lit_simplified.blocks.scan import LONGEST, running_sum


@pytest.fixture(autouse=True)
def chunks_for_few_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "FEWEST", 1)


@pytest.mark.parametrize("length", [1, 2, 7, LONGEST, 31, 48, 128, 2 * LONGEST + 2, 131])
def test_it_equals_cumsum_with_its_gradient(length: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, length, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, length, 5, dtype=torch.float64)
    ours, theirs = running_sum(x), x.cumsum(1)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    gradients = [torch.autograd.grad((sums * weights).sum(), x)[0] for sums in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)


def test_its_input_may_lie_anyhow_in_memory_and_is_left_alone() -> None:
    x = torch.randn(4, 6, 32, dtype=torch.float64).transpose(1, 2)
    before = x.clone()
    torch.testing.assert_close(running_sum(x), x.cumsum(1))
    assert torch.equal(x, before)


@pytest.mark.parametrize("numbers", [scan.FEWEST - 64, scan.FEWEST])
def test_few_numbers_are_left_to_cumsum(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    sums = running_sum(torch.zeros(1, numbers // 64, 64, requires_grad=True))
    assert ("RunningSum" in str(sums.grad_fn)) == (numbers == scan.FEWEST)


def test_it_is_gone_in_a_compiled_graph() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compile(running_sum, backend=keep, fullgraph=True)(torch.randn(2, 32, 3))
    assert ["cumsum" in str(node.target) for graph in graphs for node in graph.graph.nodes].count(True) == 1
