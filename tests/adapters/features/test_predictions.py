"""Out-of-fold predictions are kept with the features that they were made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import headkit
from headkit.adapters.features.disk_space import clear_cache
from headkit.adapters.features.predictions import find_predictions
from tests.backbones import random_backbone


def test_fit_keeps_its_out_of_fold_predictions(shapes: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    head = headkit.fit(random_backbone(), shapes, workers=0, cache=cache)
    found = find_predictions(head.digest, cache)
    assert found is not None
    assert found.logits.shape == (24, 3)
    accuracy = (found.logits.argmax(1) == found.targets[found.images]).mean()
    assert accuracy == head.metrics["accuracy"]
    assert len(np.unique(found.pixel_digests)) == 24
    assert find_predictions("0" * 64, cache) is None
    (path,) = cache.glob("features/*/predictions-*")
    path.write_bytes(path.read_bytes()[:50])
    assert find_predictions(head.digest, cache) is None
    clear_cache(cache)
    assert not list((cache / "features").iterdir())
