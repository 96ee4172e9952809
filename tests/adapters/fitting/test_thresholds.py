"""Thresholds of labels reach their goal on the images that chose them."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.metrics import f1_score, precision_score

from headkit.adapters.fitting.thresholds import choose_thresholds

PAIRS = st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=40)


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_no_other_threshold_has_a_higher_f1(pairs: list[tuple[int, bool]]) -> None:
    score = np.array([value / 20 for value, _ in pairs])
    y = np.array([positive for _, positive in pairs], float)
    if y.min() == y.max():
        assert choose_thresholds(score[:, None], y[:, None]) == [0.5]
        return
    (chosen,) = choose_thresholds(score[:, None], y[:, None])
    best = max(f1_score(y, score >= cut, zero_division=0) for cut in np.unique(score))
    assert f1_score(y, score >= chosen, zero_division=0) == pytest.approx(best)


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.sampled_from([0.5, 0.8, 1.0]))
def test_the_lowest_threshold_with_the_precision_is_taken(
    pairs: list[tuple[int, bool]], goal: float
) -> None:
    score = np.array([value / 20 for value, _ in pairs])
    y = np.array([positive for _, positive in pairs], float)
    if y.min() == y.max():
        return
    (chosen,) = choose_thresholds(score[:, None], y[:, None], goal)
    cuts = np.unique(score)
    precisions = {cut: precision_score(y, score >= cut, zero_division=0) for cut in cuts}
    found = precision_score(y, score >= chosen, zero_division=0)
    reaching = [cut for cut in cuts if precisions[cut] >= goal]
    if reaching:
        assert found >= goal
        assert (score >= chosen).sum() == (score >= min(reaching)).sum()
    else:
        assert found == pytest.approx(max(precisions.values()))


@pytest.mark.parametrize("goal", ["recall", 0, 1.5, -1])
def test_another_goal_is_refused(goal: str | float) -> None:
    with pytest.raises(ValueError, match="expected 'f1' or a precision"):
        choose_thresholds(np.zeros((2, 1)), np.zeros((2, 1)), goal)
