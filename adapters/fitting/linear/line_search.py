"""Backtracking line search: shorten a step until it lowers the objective enough."""

from __future__ import annotations

from collections.abc import Callable

from .mean_loss import Point

ARMIJO = 1e-4
"""Share of the decrease that the slope promises which a step must reach (Armijo, 1966)."""
MIN_LENGTH = 1e-6
"""Step length below which the search gives up."""
MIN_SHRINK, MAX_SHRINK = 0.1, 0.5
"""Bounds of the factor by which a step that is too long is shortened."""


def search_line(
    evaluate: Callable[[float], tuple[Point, float]], start: float, slope: float, rounding: float
) -> tuple[Point, float] | None:
    """Return the first step, from the full one down, that meets Armijo's rule.

    The next length to try is the minimum of the parabola through the known values, within bounds.

    Args:
        evaluate: Function that returns the point after a step of some length, and its objective.
        start: Objective before the step.
        slope: Decrease of the objective per length at the start.
        rounding: Rounding error of the objective, as a share of it. An increase by this share
            counts as no increase.

    Returns:
        The point after the step and its objective; None if no step is long enough.
    """
    length = 1.0
    while length >= MIN_LENGTH:
        point, value = evaluate(length)
        if value <= start - ARMIJO * length * slope + rounding * start:
            return point, value
        excess = 2 * (value - start + length * slope)
        shortest, longest = MIN_SHRINK * length, MAX_SHRINK * length
        if excess > 0:
            length = min(longest, max(shortest, slope * length**2 / excess))
        else:
            length = longest
    return None
