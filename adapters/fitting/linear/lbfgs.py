"""Preconditioned L-BFGS for linear models on standardized features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from headkit.adapters.heads.tasks import Task

from .blocks import Standardized, times, transposed_times

RANK = 256
"""Directions in which the curvature is known one by one."""
MEMORY = 10
"""Steps that L-BFGS remembers."""
Memory = tuple[tuple[Tensor, Tensor], ...]
"""Steps, and by how much they changed the gradient."""


@dataclass(frozen=True)
class Point:
    """Parameters, with the loss there.

    Attributes:
        theta: ``[num_outputs, num_features + 1]``, weights and in the last column biases.
        loss: mean loss, without the penalty.
        gradient: of ``loss``, shaped like ``theta``.
        curvature: ``[num_outputs]``, mean second derivative by each logit.
    """

    theta: Tensor
    loss: float
    gradient: Tensor
    curvature: Tensor


class Problem:
    """The mean loss of a linear model as a function of its parameters.

    Args:
        rows: standardized features of N images.
        y: targets, see ``Task.restrict``.
        task: which loss, see ``Task.losses``.
        weight: see ``Task.restrict``.
    """

    def __init__(self, rows: Standardized, y: Tensor, task: Task, weight: Tensor | None) -> None:
        self.rows, self.y, self.task, self.weight = rows, y, task, weight
        self.dtype = rows.dtype
        self.total = task.total_weight(y, weight)

    def to(self, dtype: torch.dtype) -> Problem:
        """Return the same problem in another precision."""
        return Problem(self.rows.to(dtype), self.y, self.task, self.weight)

    def loss(self, theta: Tensor) -> float:
        """Return the mean loss alone."""
        theta = theta.to(self.dtype)
        weight, bias = theta[:, :-1].contiguous(), theta[:, -1]
        losses = torch.zeros((), dtype=torch.float64, device=theta.device)
        for where, z in self.rows.blocks():
            losses = losses + (self._losses(times(z, weight) + bias, where)[0] / self.total).sum()
        return float(losses)

    def at(self, theta: Tensor) -> Point:
        """Return the point with these parameters: one pass over the rows."""
        theta = theta.to(self.dtype)
        weight, bias = theta[:, :-1].contiguous(), theta[:, -1]
        losses = torch.zeros((), dtype=torch.float64, device=theta.device)
        gradient = torch.zeros_like(theta, dtype=torch.float64)
        curvature = torch.zeros(len(theta), dtype=torch.float64, device=theta.device)
        for where, z in self.rows.blocks():
            loss, residual, second = self._losses(times(z, weight) + bias, where)
            losses = losses + (loss / self.total).sum()
            gradient[:, :-1] += transposed_times(residual, z)
            gradient[:, -1] += residual.sum(0)
            curvature += second.sum(0)
        gradient /= self.total.reshape(-1, 1)
        curvature /= self.total
        return Point(theta, float(losses), gradient.to(self.dtype), curvature.to(self.dtype))

    def _losses(self, logits: Tensor, where: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of some rows and its derivatives, see ``Task.losses``."""
        weight = self.weight
        if weight is not None and weight.dim() == 2:  # of images
            weight = weight[where]
        return self.task.losses(logits, self.y[where], weight)


@dataclass(frozen=True)
class Spectrum:
    """Leading eigenvectors of the features' covariance, and how much the others vary.

    Attributes:
        vectors: ``[num_features, rank]``.
        values: ``[rank]``.
        tail: mean of the other eigenvalues.
    """

    vectors: Tensor
    values: Tensor
    tail: float

    @classmethod
    def from_features(cls, z: Tensor) -> Spectrum:
        """Compute it by subspace iteration from a random start (Halko, Martinsson, Tropp 2011).

        Args:
            z: ``[n, num_features]``, standardized features of some images.
        """
        n, width = z.shape
        rank = min(RANK, n, width)
        start = torch.randn(n, rank, generator=torch.Generator().manual_seed(0), dtype=z.dtype)
        basis = transposed_times(start.to(z.device), z)
        basis = transposed_times(times(z, basis), z)
        basis = torch.linalg.qr(basis.T).Q
        seen = times(z, basis.T.contiguous())
        values, vectors = torch.linalg.eigh(seen.T @ seen / n)
        values = values.clamp(min=0)
        rest = float(z.square().sum(dtype=torch.float64)) / n - float(values.sum())
        return cls(basis @ vectors, values, max(0.0, rest / max(1, width - rank)))

    def to(self, dtype: torch.dtype) -> Spectrum:
        """Return it in another precision."""
        return Spectrum(self.vectors.to(dtype), self.values.to(dtype), self.tail)


class Descent:
    """Minimize ``loss + l2 / 2 * ||W||²`` for one strength after the other.

    L-BFGS (Liu and Nocedal, 1989), started in each step from the inverse of an approximate
    Hessian: each output's mean curvature times the covariance of the features, plus the penalty.
    Böhning's (1992) bound of the multinomial Hessian has this form; the present curvature replaces
    his constant. The covariance is known in its leading directions and flat in the others, as in
    randomized preconditioners (Frangella, Tropp and Udell, 2021). What L-BFGS remembers is
    kept without the penalty, hence serves the next strength.

    Args:
        problem: the loss.
        spectrum: of the problem's features.
        theta: where to start.
        memory: of another descent for the same loss.
    """

    def __init__(
        self,
        problem: Problem,
        spectrum: Spectrum,
        theta: Tensor,
        memory: Memory = (),
    ) -> None:
        self.problem, self.spectrum = problem, spectrum.to(problem.dtype)
        self.memory = tuple((s.to(problem.dtype), y.to(problem.dtype)) for s, y in memory)
        self.point = problem.at(theta.to(problem.dtype))

    def to(self, dtype: torch.dtype) -> Descent:
        """Return the same state in another precision."""
        return Descent(self.problem.to(dtype), self.spectrum, self.point.theta, self.memory)

    def objective(self, point: Point, l2: float) -> float:
        """Return the loss with the penalty."""
        return point.loss + l2 / 2 * float(point.theta[:, :-1].square().sum(dtype=torch.float64))

    def run(self, l2: float, tolerance: float, max_iterations: int) -> tuple[int, bool]:
        """Descend. Returns the iterations made, and whether ``tolerance`` was reached.

        Args:
            l2: strength of the penalty.
            tolerance: decrease of the objective that the next step promises, as a share of it.
            max_iterations: at most.
        """
        single = self.problem.dtype == torch.float32
        noise = 1e-7 if single else 1e-14
        tolerance = max(tolerance, 20 * noise)
        penalty = torch.full_like(self.point.theta[:1], l2)
        penalty[:, -1] = 0
        pairs = [_Pair(s, y + penalty * s) for s, y in self.memory]
        value = self.objective(self.point, l2)
        for iteration in range(max_iterations):
            gradient = self.point.gradient + penalty * self.point.theta
            direction = _direction(gradient, pairs, self._preconditioner(l2))
            slope = _dot(gradient, direction)
            if slope <= 0 and pairs:
                # What is remembered is down to rounding: the preconditioner alone is definite.
                self.memory, pairs = (), []
                continue
            if slope / 2 <= tolerance * value:
                return iteration, True
            length = 1.0
            while True:
                point = self.problem.at(self.point.theta - length * direction)
                reached = self.objective(point, l2)
                if reached <= value - 1e-4 * length * slope + noise * value:
                    break
                # The minimum of the parabola through what is known; Armijo's rule is met near it.
                excess = 2 * (reached - value + length * slope)
                least, most = 0.1 * length, 0.5 * length
                length = min(most, max(least, slope * length**2 / excess)) if excess > 0 else most
                if length < 1e-6:
                    return iteration, False
            s, y = point.theta - self.point.theta, point.gradient - self.point.gradient
            pair = _Pair(s, y + penalty * s)
            if pair.product > 0:
                self.memory = (*self.memory, (s, y))[-MEMORY:]
                pairs = [*pairs, pair][-MEMORY:]
            self.point, value = point, reached
        return max_iterations, False

    def _preconditioner(self, l2: float) -> Callable[[Tensor], Tensor]:
        """Return the product with the inverse of the approximate Hessian at the present point."""
        vectors, values = self.spectrum.vectors, self.spectrum.values
        # An output that no image is in doubt about still moves when told to.
        curvature = self.point.curvature.clamp(min=1e-7)[:, None]
        flat = 1 / (curvature * self.spectrum.tail + l2)
        leading = 1 / (curvature * values + l2) - flat

        def precondition(gradient: Tensor) -> Tensor:
            weight = gradient[:, :-1]
            product = torch.empty_like(gradient)
            product[:, :-1] = weight * flat + ((weight @ vectors) * leading) @ vectors.T
            product[:, -1] = gradient[:, -1] / curvature[:, 0]
            return product

        return precondition


class _Pair:
    """A step, the change of the gradient along it, and their product."""

    def __init__(self, s: Tensor, y: Tensor) -> None:
        self.s, self.y, self.product = s, y, _dot(s, y)


def _direction(
    gradient: Tensor, pairs: list[_Pair], precondition: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return L-BFGS's approximation of the inverse Hessian times ``gradient``: two loops."""
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
