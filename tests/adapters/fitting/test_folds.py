"""Groups are stratified, and copies of an image stay together."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from headkit.adapters.fitting.folds import make_partition
from headkit.adapters.heads.tasks import get_task


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=2, max_size=80))
def test_every_partition_keeps_copies_together_and_trains_every_class(
    images: list[tuple[int, int]],
) -> None:
    block_class = {block: label for label, block in reversed(images)}
    blocks = torch.tensor([block for _, block in images])
    y = torch.tensor([block_class[block] for _, block in images])
    partition = make_partition(y, blocks, get_task("multiclass"), 0)
    assert partition.order.sort().values.tolist() == list(range(len(images)))
    covered = [row for start, end in partition.groups for row in range(start, end)]
    assert covered == list(range(len(covered)))
    ranges = [(start, end) for start, end in partition.folds]
    assert [row for start, end in ranges for row in range(start, end)] == covered
    for start, end in (*partition.groups, *partition.folds):
        held = partition.order[start:end]
        rest = np.setdiff1d(np.arange(len(images)), held.numpy())
        assert not set(blocks[held].tolist()) & set(blocks[rest].tolist())
        assert set(y[held].tolist()) <= set(y[rest].tolist())


def test_a_group_has_an_image_of_each_class() -> None:
    y = torch.arange(50) % 10
    partition = make_partition(y, torch.arange(50), get_task("multiclass"), 0)
    assert len(partition.groups) == 5
    for start, end in partition.groups:
        assert sorted(y[partition.order[start:end]].tolist()) == list(range(10))


def test_there_are_up_to_twenty_groups_in_eight_folds() -> None:
    counts = {}
    for images in (6, 20, 200, 1000):
        y = torch.arange(images) % 2
        partition = make_partition(y, torch.arange(images), get_task("multiclass"), 0)
        counts[images] = (len(partition.groups), len(partition.folds))
    assert counts == {6: (3, 3), 20: (10, 8), 200: (20, 8), 1000: (20, 8)}


def test_a_class_with_one_image_is_never_held_out() -> None:
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    partition = make_partition(y, torch.arange(6), get_task("multiclass"), 0)
    held = [
        partition.order[row].item() for start, end in partition.groups for row in (start, end - 1)
    ]
    assert 5 not in held
    alone = make_partition(torch.arange(4), torch.arange(4), get_task("multiclass"), 0)
    assert alone.groups == ()
    assert alone.folds == ()


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks_hold_out_every_image_once(task: str) -> None:
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(40, 3, generator=generator) > 0.5).float()
    partition = make_partition(y, torch.arange(40), get_task(task), 0)
    covered = sum(end - start for start, end in partition.folds)
    assert covered == 40
