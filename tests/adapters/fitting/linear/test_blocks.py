from typing import Any

import numpy as np
import pytest
import torch

from headkit.adapters.fitting.linear.products import multiply
from headkit.adapters.fitting.linear.solve import solve

from .problems import Array, Blocks, blobs, logits_of, tensors


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("count", [100, 1300])
def test_blocks_give_the_same_solution_as_a_tensor(
    digits: tuple[Array, Array, Array, Array], task: Any, count: int
) -> None:
    x, y, x_val, y_val = map(torch.from_numpy, digits)
    x, y = x[:count], y[:count]
    if task != "multiclass":
        y, y_val = torch.eye(10)[y], torch.eye(10)[y_val]
    whole = solve(x, y, 10, task=task, x_val=x_val, y_val=y_val, tolerance=1e-10)
    blocks, val_blocks = Blocks(x, 7, 64, 300, 1), Blocks(x_val, 100)
    parts = solve(blocks, y, 10, task=task, x_val=val_blocks, y_val=y_val, tolerance=1e-10)
    assert parts.l2 == whole.l2
    difference = logits_of(whole.linear, digits[2]) - logits_of(parts.linear, digits[2])
    assert np.abs(difference).max() < 1e-3


def test_blocks_can_be_held_out() -> None:
    x, y = tensors(*blobs(2500, 10, 4))
    parts, whole = solve(Blocks(x, 333), y, 4), solve(x, y, 4)
    assert parts.l2 == whole.l2
    assert torch.allclose(parts.linear.weight, whole.linear.weight, atol=1e-3)


def test_few_blocks_are_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headkit.adapters.fitting.linear.regularization_path.MAX_DOUBLE_SIZE", 0)
    monkeypatch.setattr("headkit.adapters.fitting.linear.standardization.CHUNK", 2**12)
    monkeypatch.setattr("headkit.adapters.fitting.linear.standardization.BLOCK", 2**14)
    x, y = tensors(*blobs(5000, 64, 4))
    rows = Blocks(x.float(), 64)
    solve(rows, y, 4)
    assert rows.most_alive <= 3


def test_blocks_that_contradict_their_shape_are_refused() -> None:
    rows = Blocks(torch.ones(10, 3), 4)
    rows.shape = (12, 3)
    with pytest.raises(ValueError, match="the blocks have 10 rows, expected 12"):
        solve(rows, torch.zeros(12, dtype=torch.int64), 2, l2=1)
    rows.shape = (10, 4)
    with pytest.raises(ValueError, match=r"shape \(4, 3\), expected \[n, 4\]"):
        solve(rows, torch.zeros(10, dtype=torch.int64), 2, l2=1)


@pytest.mark.parametrize("n", [1, 255, 256, 257, 700])
@pytest.mark.parametrize(("outputs", "width"), [(1, 1), (3, 5), (10, 64), (70, 33)])
def test_products_equal_those_of_numpy(n: int, outputs: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, width, generator=generator)
    weight = torch.randn(outputs, width, generator=generator)
    product = multiply(z, weight)
    assert np.abs(product.numpy() - z.double().numpy() @ weight.double().numpy().T).max() < 1e-4
