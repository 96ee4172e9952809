from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headkit.adapters.data.open import holdout


def test_holdout_is_stratified_by_class() -> None:
    targets = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    held_out = holdout(targets, "multiclass", 0.2, seed=0)
    assert [int(held_out[targets == label].sum()) for label in range(4)] == [20, 2, 1, 0]
    generator = np.random.default_rng(0)
    assert set(np.flatnonzero(held_out)[:20]) == set(generator.permutation(100)[:20])


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_seed_determines_the_holdout(task: Any) -> None:
    shape = 200 if task == "multiclass" else (200, 3)
    targets = np.random.default_rng(0).integers(0, 2, shape)
    first, same, other = (holdout(targets, task, 0.3, seed) for seed in (5, 5, 6))
    assert first.dtype == np.bool_
    assert (first == same).all()
    assert (first != other).any()
    assert first.mean() == pytest.approx(0.3, abs=0.02)


def test_regression_holds_out_the_share() -> None:
    assert [
        int(holdout(np.zeros((n, 1)), "regression", 0.2, seed=0).sum()) for n in (1, 2, 3, 10, 99)
    ] == [0, 1, 1, 2, 20]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_label_stays_in_training(data: st.DataObject) -> None:
    images, labels = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 6))
    bits = data.draw(st.lists(st.booleans(), min_size=images * labels, max_size=images * labels))
    targets = np.array(bits, np.float32).reshape(images, labels)
    share = data.draw(st.floats(0.05, 0.95))
    held_out = holdout(targets, "multilabel", share, data.draw(st.integers(0, 9)))
    assert (targets[~held_out].sum(0) > 0).tolist() == (targets.sum(0) > 0).tolist()


def test_multilabel_shares_are_nearer_than_a_random_choice() -> None:
    generator = np.random.default_rng(0)
    targets = (generator.random((2000, 40)) < generator.uniform(0.005, 0.1, 40)).astype(np.float32)

    def largest_error(held_out: Any) -> float:
        return float(np.abs(targets[held_out].sum(0) / targets.sum(0) - 0.2).max())

    held_out = holdout(targets, "multilabel", 0.2, seed=0)
    assert held_out.mean() == pytest.approx(0.2, abs=0.005)
    assert largest_error(held_out) < 0.05
    assert largest_error(generator.random(2000) < 0.2) > 0.1


def test_multilabel_with_one_label_each_is_split_like_multiclass() -> None:
    targets = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    held_out = holdout(np.eye(4, dtype=np.float32)[targets], "multilabel", 0.2, seed=0)
    assert [int(held_out[targets == label].sum()) for label in range(4)] == [20, 2, 1, 0]
