"""Classification problems for the linear solver, and predictions of its solutions."""

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp

from headkit.adapters.fitting.linear.solve import VAR_SMOOTHINGS, LinearMap

Array = np.ndarray[Any, Any]


def standardized(x: Array, like: Array | None = None) -> Array:
    like = x if like is None else like
    variance = like.var(0)
    return np.asarray((x - like.mean(0)) / np.sqrt(variance + VAR_SMOOTHINGS[0] * variance.mean()))


def blobs(n: int, d: int, classes: int, seed: int = 0) -> tuple[Array, Array]:
    """Return overlapping classes, with features of very different scales and means other than 0."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, n)
    centers = generator.normal(size=(classes, d))
    return (centers[y] + generator.normal(size=(n, d))) * generator.uniform(0.1, 10, d) + 3, y


def logits_of(linear: LinearMap, x: Array) -> Array:
    return np.asarray(x.astype(np.float64) @ linear.weight.numpy().T + linear.bias.numpy())


def log_loss(logits: Array, y: Array) -> float:
    return float((logsumexp(logits, 1) - logits[np.arange(len(y)), y]).mean())


def accuracy(linear: LinearMap, x: Array, y: Array) -> float:
    return float((logits_of(linear, x).argmax(1) == y).mean())


def probabilities(linear: LinearMap, x: Array) -> Array:
    logits = logits_of(linear, x)
    return np.asarray(np.exp(logits - logsumexp(logits, 1, keepdims=True)))


def tensors(x: Array, y: Array) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(x), torch.from_numpy(y)


class Blocks:
    """Rows in blocks of ``sizes`` in turn; counts the blocks that are alive at the same time."""

    def __init__(self, x: torch.Tensor, *sizes: int) -> None:
        self.x, self.sizes, self.shape = x, sizes, (x.shape[0], x.shape[1])
        self.alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.most_alive = 0

    def blocks(self) -> Iterator[torch.Tensor]:
        start, turn = 0, 0
        while start < len(self.x):
            size = self.sizes[turn % len(self.sizes)]
            block = self.x[start : start + size].clone()
            self.alive.add(block)
            self.most_alive = max(self.most_alive, len(self.alive))
            yield block
            start, turn = start + size, turn + 1
