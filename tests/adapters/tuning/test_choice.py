from typing import Any

import pytest
import torch
from torch import Tensor

from headkit.adapters.heads.tasks import get_task
from headkit.adapters.tuning.choice import ENOUGH, choose, make_parts
from headkit.adapters.tuning.tuner import Candidate

TASK = get_task("multiclass")
GOOD, BAD = Candidate("affine", 1e-2), Candidate("lora", 1e-2)


def logits(y: Tensor, right: float, scale: float = 4.0) -> Tensor:
    """Return logits that are right for a share of the images."""
    generator = torch.Generator().manual_seed(0)
    taken = torch.where(torch.rand(len(y), generator=generator) < right, y, (y + 1) % 3)
    noise = torch.rand(len(y), 3, generator=generator)
    return scale * (torch.nn.functional.one_hot(taken, 3) + noise).double()


@pytest.fixture
def y() -> Tensor:
    return torch.arange(300) % 3


def test_best_candidate_wins(y: Tensor) -> None:
    tried = {None: logits(y, 0.6), GOOD: logits(y, 0.9), BAD: logits(y, 0.7)}
    found = choose(tried, y, TASK)
    assert found.best == GOOD
    assert found.losses[GOOD] < found.losses[BAD] < found.losses[None]


def test_head_stays_without_a_clear_gain(y: Tensor) -> None:
    head = logits(y, 0.8)
    slightly = head.clone()
    slightly[:3] = logits(y, 1.0)[:3]
    slightly[3:5] = logits(y, 0.0)[3:5]
    assert choose({None: head, GOOD: slightly}, y, TASK).best is None
    assert choose({None: head, GOOD: head.clone()}, y, TASK).best is None


def test_few_images_are_no_proof() -> None:
    y = torch.tensor([0])
    tried = {None: logits(y, 0.0), GOOD: logits(y, 1.0)}
    assert choose(tried, y, TASK).best is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_training_that_diverges_never_wins(y: Tensor, value: float) -> None:
    broken = logits(y, 1.0)
    broken[7, 1] = value
    found = choose({None: logits(y, 0.4), GOOD: broken}, y, TASK)
    assert found.best is None
    assert GOOD not in found.losses


def test_logits_that_are_too_large_do_not_lose(y: Tensor) -> None:
    """A tuned network is too sure of itself; the temperature mends that."""
    tried = {None: logits(y, 0.8), GOOD: logits(y, 0.9, scale=100)}
    assert choose(tried, y, TASK).best == GOOD


def test_numbers_are_compared_by_their_errors() -> None:
    targets = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).double()
    tried = {None: torch.zeros_like(targets), GOOD: targets + 0.1}
    assert choose(tried, targets, get_task("regression")).best == GOOD


@pytest.mark.parametrize(("count", "parts"), [(60, 5), (150, 2), (300, 1)])
def test_enough_images_decide(count: int, parts: int) -> None:
    y = torch.arange(count) % 3
    among = torch.ones(count, dtype=torch.bool)
    among[:6] = False
    found = make_parts(y, torch.arange(count), among, TASK, seed=0)
    assert len(found) == parts
    held = torch.stack([held for _, held in found])
    assert int(held.sum(0).max()) == 1
    assert held.any(0).sum() >= min(ENOUGH, count - 6)
    for chosen, held_out in found:
        assert not bool((chosen & held_out).any())
        assert torch.equal(chosen | held_out, among)


def test_copies_are_on_one_side() -> None:
    y, blocks = torch.arange(60) % 3, torch.arange(60) % 30
    among = torch.ones(60, dtype=torch.bool)
    for chosen, held in make_parts(y, blocks, among, TASK, seed=0):
        assert not set(blocks[chosen].tolist()) & set(blocks[held].tolist())


def test_nothing_is_left_out_if_each_class_has_one_image() -> None:
    y: Any = torch.arange(3)
    among = torch.ones(3, dtype=torch.bool)
    assert make_parts(y, torch.arange(3), among, TASK, seed=0) == []
