"""Digits for tests of the linear solver."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from .problems import Array


@pytest.fixture(scope="session")
def digits() -> tuple[Array, Array, Array, Array]:
    """Return digits after a random layer of 640 ReLUs, like features: training and validation."""
    images, y = load_digits(return_X_y=True)
    generator = np.random.default_rng(0)
    x = np.maximum(images @ generator.normal(size=(64, 640)) / 8 - 2, 0).astype(np.float32)
    order = generator.permutation(len(x))
    x, y = x[order], y[order]
    return x[:1300], y[:1300], x[1300:], y[1300:]
