"""The stopping rule and the line search of L-BFGS, on functions of one variable."""

from collections.abc import Callable

import pytest
import torch

from headkit.adapters.fitting.linear.lbfgs import has_converged
from headkit.adapters.fitting.linear.line_search import search_line
from headkit.adapters.fitting.linear.mean_loss import Point


def along(function: Callable[[float], float]) -> Callable[[float], tuple[Point, float]]:
    def evaluate(length: float) -> tuple[Point, float]:
        value, zero = function(length), torch.zeros(1, 1)
        return Point(torch.tensor([[length]]), value, zero, zero[0]), value

    return evaluate


def test_stopping_rule_compares_half_the_slope_with_a_share_of_the_objective() -> None:
    assert has_converged(slope=2e-5, objective=1.0, tolerance=1e-5)
    assert not has_converged(slope=2.1e-5, objective=1.0, tolerance=1e-5)
    assert has_converged(slope=2.1e-5, objective=1.1, tolerance=1e-5)


def test_full_step_to_a_minimum_is_taken() -> None:
    step = search_line(along(lambda t: 1 + (1 - t) ** 2), start=2, slope=2, rounding=0)
    assert step is not None
    assert float(step[0].theta) == 1
    assert step[1] == 1


@pytest.mark.parametrize("minimum", [0.4, 0.25, 0.12])
def test_long_step_is_shortened_to_the_minimum_of_a_parabola(minimum: float) -> None:
    parabola = along(lambda t: 1 + (t - minimum) ** 2)
    step = search_line(parabola, start=1 + minimum**2, slope=2 * minimum, rounding=0)
    assert step is not None
    assert float(step[0].theta) == pytest.approx(minimum)


def test_no_step_is_taken_uphill_unless_the_rise_is_rounding() -> None:
    def uphill(length: float) -> float:
        return 1 + 1e-9 * (1 + length)

    assert search_line(along(uphill), start=1, slope=1e-9, rounding=0) is None
    assert search_line(along(uphill), start=1, slope=1e-9, rounding=1e-8) is not None
