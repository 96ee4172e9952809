"""A server answers for heads over levels, if its backbone computes the levels."""

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import headkit
from headkit.adapters.errors import BackboneMismatch
from headkit.export.serving.service import Service
from tests.backbones import active_backbone
from tests.heads import head_for
from tests.level_heads import logits_of, over_levels
from tests.logits import torch_logits


@pytest.fixture(scope="module")
def model() -> Any:
    return active_backbone()


def predict(service: Service, *heads: str) -> dict[str, list[float]]:
    """Scores by head, in the order of the classes."""
    pixels = np.random.default_rng(3).integers(0, 256, (200, 240, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")

    async def ask() -> Any:
        await service.start()
        try:
            return await service.predict(content.getvalue(), heads, top_k=3)
        finally:
            await service.stop()

    answers = asyncio.run(ask())
    return {
        name: [p["score"] for p in sorted(answer.predictions, key=lambda one: one["label"])]
        for name, answer in answers.items()
    }


@pytest.mark.parametrize("levels", ["all", None])
def test_heads_over_levels_are_served_if_the_backbone_computes_the_levels(
    levels: str | None, model: Any, tmp_path: Path
) -> None:
    plain = head_for(model, 3, label_names=tuple("abc"))
    some = over_levels(model, ["last", "layer1", "layer3"], 3, label_names=tuple("abc"))
    store = headkit.HeadStore(tmp_path / "store")
    store.publish(plain, "plain")
    store.publish(some, "some")
    path = headkit.export(model, tmp_path / "model.onnx", "backbone", levels=levels).path
    preprocess = headkit.Predictor(path).preprocess
    pixels = np.random.default_rng(3).integers(0, 256, (200, 240, 3), dtype=np.uint8)
    x = torch.from_numpy(preprocess(Image.fromarray(pixels)))[None]
    answers = predict(Service(store, path), "*")
    expected = torch.from_numpy(torch_logits(model, plain, x)).softmax(1)[0]
    assert answers["plain"] == pytest.approx(expected.tolist(), abs=1e-4)
    if levels is None:
        assert set(answers) == {"plain"}
        with pytest.raises(BackboneMismatch, match=r"reads the levels layer1, layer3.*--levels"):
            predict(Service(store, path), "some")
    else:
        expected = torch.from_numpy(logits_of(model, some, x)).softmax(1)[0]
        assert answers["some"] == pytest.approx(expected.tolist(), abs=1e-4)
