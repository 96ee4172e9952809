"""Folds are stratified, and copies of an image stay together."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from headkit.adapters.fitting.folds import Folds, make_folds
from headkit.adapters.heads.tasks import get_task


def _folds(y: Tensor, blocks: Tensor | None = None) -> Folds:
    blocks = torch.arange(len(y)) if blocks is None else blocks
    return make_folds(y, blocks, get_task("multiclass"), 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=2, max_size=80))
def test_every_fold_keeps_copies_together_and_trains_every_class(
    images: list[tuple[int, int]],
) -> None:
    block_class = {block: label for label, block in reversed(images)}
    blocks = torch.tensor([block for _, block in images])
    y = torch.tensor([block_class[block] for _, block in images])
    folds = _folds(y, blocks)
    assert sorted(folds.measured) == sorted(set(folds.of_row.tolist()) - {-1})
    for fold in folds.measured:
        held = folds.rows_of((fold,))
        assert not set(blocks[held].tolist()) & set(blocks[~held].tolist())
        assert set(y[held].tolist()) <= set(y[~held].tolist())
    for group in folds.left_out:
        assert not bool(folds.rows_of(group).all())


def test_a_fold_has_an_image_of_each_class() -> None:
    y = torch.arange(50) % 10
    folds = _folds(y)
    assert len(folds.measured) == 5
    for fold in folds.measured:
        assert sorted(y[folds.of_row == fold].tolist()) == list(range(10))


def test_there_are_up_to_five_folds_each_left_out_with_both_neighbors() -> None:
    for images, count in {6: 3, 8: 4, 20: 5, 1000: 5}.items():
        folds = _folds(torch.arange(images) % 2)
        assert folds.measured == tuple(range(count))
        for fold in folds.measured:
            others = {one for group in folds.left_out if fold in group for one in group} - {fold}
            assert others == {(fold + 1) % count, (fold - 1) % count}


def test_two_folds_are_left_out_alone() -> None:
    folds = _folds(torch.tensor([0, 0, 1, 1]))
    assert folds.left_out == ((0,), (1,))
    assert folds.measured == (0, 1)


def test_of_many_images_a_fifth_is_measured_and_another_fifth_chooses() -> None:
    folds = _folds(torch.arange(2001) % 3)
    assert folds.left_out == ((0, 1),)
    assert folds.measured == (0,)
    shares = [float((folds.of_row == fold).double().mean()) for fold in range(5)]
    assert shares == pytest.approx([0.2] * 5, abs=0.001)
    copies = _folds(torch.arange(2001) % 3, torch.arange(2001) // 30 * 3 + torch.arange(2001) % 3)
    assert len(copies.measured) == 5


def test_a_class_with_one_image_is_never_held_out() -> None:
    folds = _folds(torch.tensor([0, 0, 0, 1, 1, 2]))
    assert int(folds.of_row[5]) == -1
    alone = _folds(torch.arange(4))
    assert alone.left_out == ()
    assert alone.measured == ()
    assert alone.of_row.tolist() == [-1] * 4


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks_hold_out_every_image_once(task: str) -> None:
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(40, 3, generator=generator) > 0.5).float()
    folds = make_folds(y, torch.arange(40), get_task(task), 0)
    assert int((folds.of_row >= 0).sum()) == 40
    assert len(folds.measured) == 5
