"""The choice of a strength and of a standardization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .path import Fit, Images, Linear, Step

GAIN = 0.05
"""Share of the validation loss that another standardization has to gain: less is often chance."""
MARGIN = 2e-3
"""Share of a validation loss that is not worth solving another step for."""


class Search:
    """A path for one standardization after the other, judged by images that are held out.

    Args:
        folds: training images with validation images; of several folds, losses are averaged.
        weights: of the folds; without them all weigh the same.
    """

    def __init__(self, folds: Sequence[Images], weights: Sequence[float] | None = None) -> None:
        self.folds = folds
        weights = weights or [1.0] * len(folds)
        self.shares = [weight / sum(weights) for weight in weights]
        self.steps: tuple[Step, ...] = ()
        self._fits = dict[float, list[Fit]]()

    def visit(self, strengths: Sequence[float], smoothings: Sequence[float]) -> Step:
        """Visit all strengths with the first standardization; return the best step.

        With each further one, those from above the best strength so far are visited, starting where
        that one ended, until less than ``GAIN`` is gained.

        Args:
            strengths: from strong to weak.
            smoothings: shares of the mean variance that are added to each feature's.
        """
        # One fold alone is too few images to end the path by; one that is not averaged is not.
        early = len(self.folds) == 1
        best = self._add(self._fit(smoothings[0]), strengths, early=early)
        for smoothing in smoothings[1:]:
            place = strengths.index(best.l2)
            near = strengths[max(0, place - 1) :]
            starts = [fit.linear(best.l2) for fit in self._fits[best.var_smoothing]]
            found = self._add(self._fit(smoothing), near, starts, early=early)
            if _loss(found) > (1 - GAIN) * _loss(best):
                break
            best = found
        return best

    def polish(self, best: Step) -> Step:
        """Solve the best step of one fold to the tolerance and return it.

        Where its loss ends clearly above what another's with the same standardization was, that one
        is solved as well.
        """
        (fit,) = self._fit(best.var_smoothing)
        steps = {step.l2: step for step in self.steps if step.var_smoothing == best.var_smoothing}
        solved = {l2 for l2, step in steps.items() if step.converged}

        def rank(l2: float) -> float:
            return _loss(steps[l2]) * (1 if l2 in solved else 1 + MARGIN)

        while (chosen := min(steps, key=rank)) not in solved:
            step = fit.polish(chosen)
            steps[chosen] = replace(step, iterations=steps[chosen].iterations + step.iterations)
            solved.add(chosen)
        self.steps = tuple(
            steps[step.l2] if step.var_smoothing == best.var_smoothing else step
            for step in self.steps
        )
        return steps[chosen]

    def linear(self, step: Step) -> Linear:
        """Return the map of a step: the last fold's."""
        return self._fits[step.var_smoothing][-1].linear(step.l2)

    def _fit(self, smoothing: float) -> list[Fit]:
        """Return the folds' fits with this standardization; the others keep nothing large."""
        for other, fits in self._fits.items():
            if other != smoothing:
                for fit in fits:
                    fit.release()
        if smoothing not in self._fits:
            self._fits[smoothing] = [Fit(images, smoothing) for images in self.folds]
        return self._fits[smoothing]

    def _add(
        self,
        fits: Sequence[Fit],
        strengths: Sequence[float],
        starts: Sequence[Linear | None] | None = None,
        *,
        early: bool = False,
    ) -> Step:
        starts = starts or [None] * len(fits)
        paths = [
            fit.path(strengths, early=early, start=start)
            for fit, start in zip(fits, starts, strict=True)
        ]
        steps = [self._mean(steps) for steps in zip(*paths, strict=True)]
        self.steps += tuple(steps)
        return min(steps, key=_loss)

    def _mean(self, steps: Sequence[Step]) -> Step:
        if len(steps) == 1:
            return steps[0]
        return replace(
            steps[0],
            objective=self._averaged([step.objective for step in steps]),
            val_loss=self._averaged([_loss(step) for step in steps]),
            iterations=sum(step.iterations for step in steps),
            converged=False,
        )

    def _averaged(self, values: Sequence[float]) -> float:
        return sum(share * value for share, value in zip(self.shares, values, strict=True))


def _loss(step: Step) -> float:
    return step.val_loss or 0.0
