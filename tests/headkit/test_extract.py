"""``extract`` returns the vectors of levels beside the last features."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import headkit
from tests.backbones import random_backbone
from tests.images import read_images
from tests.level_heads import RESNET_LEVELS, over_levels, plain_levels

NO_WORKERS: dict[str, Any] = {"workers": 0, "runtime": "torch"}


def _batch(model: Any, shapes: Path) -> torch.Tensor:
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    paths, _, _ = read_images(shapes)
    return torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])


def test_levels_are_those_of_plain_timm_and_hooks(shapes: Path) -> None:
    model = random_backbone()
    found = headkit.extract(model, shapes, val=shapes, levels="all", **NO_WORKERS)
    expected = plain_levels(model, _batch(model, shapes))
    assert tuple(found.levels) == RESNET_LEVELS
    for name, vectors in {"last": found.x, **found.levels}.items():
        assert vectors.dtype == np.float32
        reference = expected[name].numpy()
        assert np.abs(vectors - reference).max() < 1e-5 * np.abs(reference).max(), name
    assert found.val is not None
    for name, vectors in found.levels.items():
        assert np.array_equal(found.val.levels[name], vectors)


def test_without_levels_the_result_has_the_last_features_alone(shapes: Path) -> None:
    model = random_backbone()
    found = headkit.extract(model, shapes, **NO_WORKERS)
    assert found.levels == {}
    for levels in ("last", ["last"], headkit.levels(model)[0], "last,layer1"):
        again = headkit.extract(model, shapes, levels=levels, **NO_WORKERS)
        assert again.x.tobytes() == found.x.tobytes()
        assert np.array_equal(again.y, found.y)
        assert list(again.levels) == (["layer1"] if levels == "last,layer1" else [])


def test_levels_are_named_as_in_fit(shapes: Path) -> None:
    model = random_backbone()
    _, _, one, _, other = headkit.levels(model)
    for levels in (f"{other.name},{one.name}", [other, one], ("last", one, other.name, one)):
        found = headkit.extract(model, shapes, levels=levels, **NO_WORKERS)
        assert {name: x.shape[1] for name, x in found.levels.items()} == {
            one.name: one.width,
            other.name: other.width,
        }


def test_features_and_levels_are_the_row_of_a_head_over_levels(shapes: Path) -> None:
    model = random_backbone("crossvit_tiny_240", depth=([1, 1, 0],))
    head = over_levels(model, [level.name for level in headkit.levels(model)], 3)
    found = headkit.extract(model, shapes, levels=head.levels, **NO_WORKERS)
    row = np.hstack([found.x, *found.levels.values()])
    logits = row @ head.tensors["level_head.weight"].T + head.tensors["level_head.bias"]
    with torch.no_grad():
        expected = headkit.attach(model, head)(_batch(model, shapes)).numpy()
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_fit_and_extract_find_levels_in_one_cache(shapes: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**NO_WORKERS, "cache": tmp_path / "cache"}
    headkit.fit(random_backbone(), shapes, levels="all", **options)
    shards = sorted((tmp_path / "cache").rglob("shard-*"))
    found = headkit.extract(random_backbone(), shapes, levels=["layer2"], **options)
    assert found.levels["layer2"].shape[0] == 24
    assert sorted((tmp_path / "cache").rglob("shard-*")) == shards


def test_levels_that_do_not_exist_give_the_error_of_fit(shapes: Path) -> None:
    messages = []
    for function in (headkit.fit, headkit.extract):
        with pytest.raises(
            headkit.ContractError, match="no level 'layer9', expected some"
        ) as error:
            function(random_backbone(), shapes, workers=0, levels=["layer1", "layer9"])
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    with pytest.raises(ValueError, match="levels is empty, expected 'all', 'last' or names"):
        headkit.extract(random_backbone(), shapes, levels=[])


@pytest.mark.parametrize("levels", ["auto", ["auto"], ["layer1", "auto"]])
def test_extract_cannot_choose_levels(levels: Any, shapes: Path) -> None:
    with pytest.raises(ValueError, match=r"levels is .*auto.*, but only fit can choose.*labels"):
        headkit.extract(random_backbone(), shapes, levels=levels)


def test_features_have_no_levels_to_extract(shapes: Path) -> None:
    found = headkit.extract(random_backbone(), shapes, workers=0)
    with pytest.raises(headkit.DataError, match="which have no levels: pass images"):
        headkit.extract(random_backbone(), found, levels="all")
