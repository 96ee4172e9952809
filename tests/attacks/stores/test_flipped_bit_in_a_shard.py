"""One bit of the cached features that a disk or somebody flips.

At 64f666f, ``fit`` took the changed features as they were and gave another head without a word. Now
each shard carries a checksum; a damaged one is found, removed and computed again.
"""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headkit
from headkit.adapters.features.cache import FeatureCache
from tests.backbones import random_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(20):
        label = ("dark", "light")[number % 2]
        (root / label).mkdir(exist_ok=True)
        pixels = generator.integers(0, 100, (32, 32, 3)) + 150 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(root / label / f"{number}.png")
    return root


def test_one_flipped_bit_anywhere_in_a_shard_gives_the_same_head(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fit() -> headkit.Head:
        return headkit.fit(
            random_backbone(), folder, cache=tmp_path / "cache", runtime="torch", workers=0
        )

    expected = fit()
    (shard,) = (tmp_path / "cache").rglob("shard-*")
    content = shard.read_bytes()
    generator = np.random.default_rng(1)
    header = int.from_bytes(content[:8], "little")
    positions = [0, 3, 9, header // 2, header, *generator.integers(0, len(content), 8)]
    for position in positions:
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(generator.integers(8))
        shard.write_bytes(flipped)
        with caplog.at_level(logging.WARNING, "headkit"):
            head = fit()
        assert "removed the damaged shard" in caplog.text
        caplog.clear()
        for name, tensor in expected.tensors.items():
            assert head.tensors[name].tobytes() == tensor.tobytes()
        assert shard.read_bytes() == content


def test_shard_is_checked_once_and_only_when_it_is_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headkit.fit(random_backbone(), folder, cache=tmp_path, runtime="torch", workers=0)
    checked = []
    original = FeatureCache._check

    def count(self: FeatureCache, number: int) -> bool:
        checked.append(number)
        return original(self, number)

    monkeypatch.setattr(FeatureCache, "_check", count)
    headkit.fit(random_backbone(), folder, cache=tmp_path, runtime="torch", workers=0)
    assert len(checked) <= 2  # by the choice of the runtime, and by the extraction
