"""Preconditioned L-BFGS for linear models on standardized features, and its stopping rule."""

from __future__ import annotations

import torch
from torch import Tensor

from .line_search import search_line
from .mean_loss import MeanLoss, Point
from .preconditioner import Preconditioner, Spectrum

MEMORY = 10
"""Number of steps that L-BFGS remembers."""
ROUNDING = {torch.float32: 1e-7, torch.float64: 1e-14}
"""Rounding error of the objective in each precision, as a share of it."""
STOPPING_ROUNDINGS = 20
"""The tolerance of the stopping rule is at least this many rounding errors."""

Memory = tuple[tuple[Tensor, Tensor], ...]
"""Steps, and the change of the gradient along each step."""


def has_converged(slope: float, objective: float, tolerance: float) -> bool:
    """Return True if the next step promises too little: the stopping rule.

    Args:
        slope: Decrease of the objective per length of the next step. A quadratic model of the
            objective promises half of it for the full step.
        objective: Objective before the step.
        tolerance: Smallest decrease that is worth a step, as a share of the objective.
    """
    return slope / 2 <= tolerance * objective


class Lbfgs:
    """Minimize ``loss + l2 / 2 * ||W||²`` for one strength ``l2`` after another.

    The method is L-BFGS (Liu and Nocedal, 1989) with a preconditioner in place of the initial
    inverse Hessian, see ``Spectrum.preconditioner``. The remembered steps do not include the
    penalty, so they also serve the next strength.

    Args:
        loss: The loss.
        spectrum: Spectrum of the features' covariance.
        theta: Parameters to start from.
        memory: Memory of another minimization of the same loss.
    """

    def __init__(
        self, loss: MeanLoss, spectrum: Spectrum, theta: Tensor, memory: Memory = ()
    ) -> None:
        self.loss, self.spectrum = loss, spectrum.to(loss.dtype)
        self.memory = tuple((s.to(loss.dtype), y.to(loss.dtype)) for s, y in memory)
        self.point = loss.evaluate(theta.to(loss.dtype))

    def to(self, dtype: torch.dtype) -> Lbfgs:
        """Return the same state in another precision."""
        return Lbfgs(self.loss.to(dtype), self.spectrum, self.point.theta, self.memory)

    def objective(self, point: Point, l2: float) -> float:
        """Return the loss with the penalty."""
        return point.loss + l2 / 2 * float(point.theta[:, :-1].square().sum(dtype=torch.float64))

    def minimize(self, l2: float, tolerance: float, max_iterations: int) -> tuple[int, bool]:
        """Take steps until the stopping rule holds, see ``has_converged``.

        Args:
            l2: Strength of the penalty.
            tolerance: Tolerance of the stopping rule.
            max_iterations: Maximum number of steps.

        Returns:
            The number of steps, and whether the tolerance was reached.
        """
        rounding = ROUNDING[self.loss.dtype]
        tolerance = max(tolerance, STOPPING_ROUNDINGS * rounding)
        penalty = torch.full_like(self.point.theta[:1], l2)
        penalty[:, -1] = 0
        pairs = [_Pair(s, y + penalty * s) for s, y in self.memory]
        value = self.objective(self.point, l2)
        for iteration in range(max_iterations):
            gradient = self.point.gradient + penalty * self.point.theta
            precondition = self.spectrum.preconditioner(self.point.curvature, l2)
            direction = _two_loop_recursion(gradient, pairs, precondition)
            slope = _dot(gradient, direction)
            if slope <= 0 and pairs:
                # Rounding has spoiled the memory. The preconditioner alone is positive definite.
                self.memory, pairs = (), []
                continue
            if has_converged(slope, value, tolerance):
                return iteration, True
            step = self._search(direction, l2, value, slope)
            if step is None:
                return iteration, False
            point, reached = step
            s, y = point.theta - self.point.theta, point.gradient - self.point.gradient
            pair = _Pair(s, y + penalty * s)
            if pair.product > 0:
                self.memory = (*self.memory, (s, y))[-MEMORY:]
                pairs = [*pairs, pair][-MEMORY:]
            self.point, value = point, reached
        return max_iterations, False

    def _search(
        self, direction: Tensor, l2: float, value: float, slope: float
    ) -> tuple[Point, float] | None:
        def evaluate(length: float) -> tuple[Point, float]:
            point = self.loss.evaluate(self.point.theta - length * direction)
            return point, self.objective(point, l2)

        return search_line(evaluate, value, slope, ROUNDING[self.loss.dtype])


class _Pair:
    """A step, the change of the gradient along it, and their product."""

    def __init__(self, s: Tensor, y: Tensor) -> None:
        self.s, self.y, self.product = s, y, _dot(s, y)


def _two_loop_recursion(
    gradient: Tensor, pairs: list[_Pair], precondition: Preconditioner
) -> Tensor:
    """Return L-BFGS's approximation of the inverse Hessian times ``gradient``."""
    rest, shares = gradient.clone(), list[float]()
    for pair in reversed(pairs):
        shares.append(_dot(pair.s, rest) / pair.product)
        rest.sub_(pair.y, alpha=shares[-1])
    direction = precondition(rest)
    if pairs:
        direction *= pairs[-1].product / _dot(pairs[-1].y, precondition(pairs[-1].y))
    for pair, share in zip(pairs, reversed(shares), strict=True):
        direction.add_(pair.s, alpha=share - _dot(pair.y, direction) / pair.product)
    return direction


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.flatten(), b.flatten()))
