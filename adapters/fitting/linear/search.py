"""Search for the best strength and standardization by validation loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .regularization_path import LinearMap, PathData, RegularizationPath, Step

MIN_GAIN = 0.05
"""Share by which another standardization must lower the validation loss: less may be chance."""
MARGIN = 2e-3
"""Share of the validation loss that is too small to solve another step for."""


class Search:
    """A search over regularization paths, one for each standardization and fold.

    Args:
        folds: Training and validation images. Losses of several folds are averaged.
        weights: Weights of the folds. Default: equal weights.
    """

    def __init__(self, folds: Sequence[PathData], weights: Sequence[float] | None = None) -> None:
        self.folds = folds
        weights = weights or [1.0] * len(folds)
        self.shares = [weight / sum(weights) for weight in weights]
        self.steps: tuple[Step, ...] = ()
        self._paths = dict[float, list[RegularizationPath]]()

    def visit(self, strengths: Sequence[float], smoothings: Sequence[float]) -> Step:
        """Visit all strengths with the first standardization. Return the best step.

        Each other standardization starts from the best step so far, and visits the next stronger
        strength and all weaker ones. The search ends when one gains less than ``MIN_GAIN``.

        Args:
            strengths: Strengths, from strong to weak.
            smoothings: Shares of the mean variance that are added to the variance of each feature.
        """
        # Each of several folds has too few validation images to end its own path.
        stop_early = len(self.folds) == 1
        best = self._visit(self._get_paths(smoothings[0]), strengths, stop_early=stop_early)
        for smoothing in smoothings[1:]:
            index = strengths.index(best.l2)
            near = strengths[max(0, index - 1) :]
            starts = [path.linear_map(best.l2) for path in self._paths[best.var_smoothing]]
            step = self._visit(self._get_paths(smoothing), near, starts, stop_early=stop_early)
            if _loss(step) > (1 - MIN_GAIN) * _loss(best):
                break
            best = step
        return best

    def solve(self, best: Step) -> Step:
        """Solve the best step of one fold to the tolerance. Return the solved step.

        If its loss ends clearly above the loss of another visited step with the same
        standardization, that step is solved as well.
        """
        (path,) = self._get_paths(best.var_smoothing)
        steps = {step.l2: step for step in self.steps if step.var_smoothing == best.var_smoothing}
        solved = {l2 for l2, step in steps.items() if step.converged}

        def rank(l2: float) -> float:
            return _loss(steps[l2]) * (1 if l2 in solved else 1 + MARGIN)

        while (chosen := min(steps, key=rank)) not in solved:
            step = path.solve(chosen)
            steps[chosen] = replace(step, iterations=steps[chosen].iterations + step.iterations)
            solved.add(chosen)
        self.steps = tuple(
            steps[step.l2] if step.var_smoothing == best.var_smoothing else step
            for step in self.steps
        )
        return steps[chosen]

    def linear_map(self, step: Step) -> LinearMap:
        """Return the map of a step in the last fold."""
        return self._paths[step.var_smoothing][-1].linear_map(step.l2)

    def _get_paths(self, smoothing: float) -> list[RegularizationPath]:
        """Return the paths of all folds for one standardization; free the memory of the others."""
        for other, paths in self._paths.items():
            if other != smoothing:
                for path in paths:
                    path.release()
        if smoothing not in self._paths:
            self._paths[smoothing] = [RegularizationPath(data, smoothing) for data in self.folds]
        return self._paths[smoothing]

    def _visit(
        self,
        paths: Sequence[RegularizationPath],
        strengths: Sequence[float],
        starts: Sequence[LinearMap | None] | None = None,
        *,
        stop_early: bool,
    ) -> Step:
        starts = starts or [None] * len(paths)
        visits = [
            path.visit(strengths, stop_early=stop_early, start=start)
            for path, start in zip(paths, starts, strict=True)
        ]
        steps = [self._average_steps(steps) for steps in zip(*visits, strict=True)]
        self.steps += tuple(steps)
        return min(steps, key=_loss)

    def _average_steps(self, steps: Sequence[Step]) -> Step:
        if len(steps) == 1:
            return steps[0]
        return replace(
            steps[0],
            objective=self._average([step.objective for step in steps]),
            val_loss=self._average([_loss(step) for step in steps]),
            iterations=sum(step.iterations for step in steps),
            converged=False,
        )

    def _average(self, values: Sequence[float]) -> float:
        return sum(share * value for share, value in zip(self.shares, values, strict=True))


def _loss(step: Step) -> float:
    return step.val_loss or 0.0
