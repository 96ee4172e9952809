"""``extract`` returns the vectors of levels beside the last features; ``fit`` reads them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import headkit
from headkit.adapters.data.features import Features
from headkit.adapters.data.memory.digest import digest_data
from headkit.adapters.data.open import open_data
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


PENALTY = {"levels": "auto", "l2": 0.1}
"""With one penalty, ``auto`` is ``last``."""


def _parts(shapes: Path) -> tuple[Any, Any, Any]:
    """Training, validation and test images in memory, all different."""
    _, labels, pixels = read_images(shapes)
    train, val, test = ([*range(start, 24, 4)] for start in (0, 1, 2))
    train += range(3, 24, 4)
    return tuple((pixels[own], [labels[i] for i in own]) for own in (train, val, test))  # type: ignore[return-value]


def _same(one: headkit.Head, other: headkit.Head) -> bool:
    return one.with_changes(created="") == other.with_changes(created="")


@pytest.mark.parametrize(
    "options",
    [
        {"levels": "auto"},
        {"levels": "all", "l2": 0.1},
        {"levels": ["layer2"]},
        {"levels": "last", "l2": 0.1},
        PENALTY,
        {"levels": "auto", "holdout": 0.3},
    ],
)
def test_features_with_levels_give_the_head_of_their_images(
    options: dict[str, Any], shapes: Path
) -> None:
    train, val, test = _parts(shapes)
    model = random_backbone()
    found = headkit.extract(model, train, val=val, levels="all", **NO_WORKERS)
    of_test = headkit.extract(model, test, levels="all", **NO_WORKERS)
    if "holdout" in options:
        found, val = replace(found, val=None), None
    expected = headkit.fit(model, train, val=val, test=test, **options, **NO_WORKERS)
    head = headkit.fit(random_backbone(), found, test=of_test, **options)
    assert _same(head, expected)
    assert bool(head.levels) == (options["levels"] != "last" and options != PENALTY)
    on_images = headkit.evaluate(head, test, backbone=model, **NO_WORKERS)
    on_features = headkit.evaluate(head, of_test, backbone=model)
    assert on_features.metrics == on_images.metrics
    assert on_features.outputs == on_images.outputs


def test_features_of_two_branches_with_levels_give_the_head_of_their_images(shapes: Path) -> None:
    model = random_backbone("crossvit_tiny_240", depth=([1, 1, 0],))
    expected = headkit.fit(model, shapes, levels="all", **NO_WORKERS)
    found = headkit.extract(model, shapes, levels="all", **NO_WORKERS)
    assert _same(headkit.fit(model, found, levels="all"), expected)


def test_features_with_levels_too_many_for_memory_give_the_same_head(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = headkit.extract(random_backbone(), shapes, levels=["layer1", "layer2"], **NO_WORKERS)
    whole = headkit.fit(random_backbone(), found, levels=["layer1", "layer2"])
    monkeypatch.setattr("headkit.adapters.features.labeled_features.MAX_IN_MEMORY", 0)
    monkeypatch.setattr("headkit.adapters.features.given.BLOCK", 5)
    assert _same(headkit.fit(random_backbone(), found, levels=["layer1", "layer2"]), whole)


def test_images_and_features_with_levels_train_and_measure_one_head(shapes: Path) -> None:
    train, val, _ = _parts(shapes)
    model = random_backbone()
    expected = headkit.fit(model, train, val=val, **NO_WORKERS)
    found = headkit.extract(model, train, val=val, levels="all", **NO_WORKERS)
    assert found.val is not None
    of_train = replace(found, val=None)
    for data, other in ((train, found.val), (of_train, val), (of_train, found.val)):
        assert _same(headkit.fit(model, data, val=other, **NO_WORKERS), expected)


def test_auto_chooses_among_the_levels_of_the_features(shapes: Path) -> None:
    model = random_backbone()
    found = headkit.extract(model, shapes, levels=["layer3", "layer1"], **NO_WORKERS)
    losses = headkit.fit(model, found).metrics["selection"]["losses"]
    assert list(losses) == ["last", "last + layer1 … layer3"]
    of_images = headkit.fit(model, shapes, **NO_WORKERS).metrics["selection"]["losses"]
    assert losses["last"] == of_images["last"]
    assert list(of_images) == ["last", "last + act1 … layer3"]


def test_missing_levels_are_named_before_anything_is_extracted(
    shapes: Path, tmp_path: Path
) -> None:
    model = random_backbone()
    whole = headkit.extract(model, shapes, levels="all", **NO_WORKERS)
    some = headkit.extract(model, shapes, levels=["layer2"], **NO_WORKERS)
    head = headkit.fit(model, whole, levels=["layer1"], l2=0.1)
    cache = tmp_path / "cache"
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: headkit.fit(model, some, levels="all"), "act1, layer1, layer3"),
        (lambda: headkit.fit(model, some, levels="layer1,layer2"), "layer1"),
        (lambda: headkit.fit(model, whole, val=some), "act1, layer1, layer3"),
        (lambda: headkit.fit(model, some, test=whole), "act1, layer1, layer3"),
        (lambda: headkit.fit(model, shapes, val=some, levels="all", cache=cache), "act1, layer1"),
        (lambda: headkit.evaluate(head, some, backbone=model), "layer1"),
        (lambda: headkit.extract(model, some, levels="all"), "act1, layer1, layer3"),
    ]
    for call, missing in calls:
        message = f"has features with the levels layer2 alone, but {missing}.* levels='all'"
        with pytest.raises(headkit.DataError, match=message):
            call()
    assert not cache.exists()
    plain = replace(whole, levels={})
    for data, val in ((whole, plain), (plain, whole)):
        message = "has features with no levels, but act1, layer1, layer2, layer3 must be read"
        with pytest.raises(headkit.DataError, match=message):
            headkit.fit(model, data, val=val)
        assert headkit.fit(model, data, val=val, levels="last", l2=0.1).levels == ()


BROKEN: list[tuple[Callable[[Features], dict[str, Any]], str]] = [
    (
        lambda f: {"levels": {"layer1": f.levels["layer1"][:, 1:]}},
        r"level layer1 with 191 numbers, but test_resnet \(ResNet\) has 192: pass features",
    ),
    (
        lambda f: {"levels": {"blocks.1": f.levels["layer1"]}},
        r"level blocks.1 with .* has the levels act1, layer1, layer2, layer3: pass features",
    ),
    (
        lambda f: {"levels": {"layer1": f.levels["layer1"][:3]}},
        "24 features, 24 labels, 3 vectors of the level layer1: expected as many of each",
    ),
    (
        lambda f: {"levels": {"layer1": f.levels["layer1"][0]}},
        r"\(level layer1\) are float32 \[[0-9]+\], expected float",
    ),
    (
        lambda f: {"levels": {"layer1": np.where(f.levels["layer1"] > 0, np.inf, 0)}},
        r"image 0 of .* \(level layer1\) have a value that is NaN or infinite",
    ),
    (lambda f: {"x": f.x * np.nan}, "image 0 of .* have a value that is NaN or infinite"),
    (lambda f: {"x": f.x[:3]}, "3 features, 24 labels, 24 vectors of the level layer1"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_features_that_do_not_fit_together_or_the_backbone_are_refused(
    change: Callable[[Features], dict[str, Any]], message: str, shapes: Path
) -> None:
    model = random_backbone()
    found = headkit.extract(model, shapes, levels=["layer1"], **NO_WORKERS)
    head = headkit.fit(model, found, levels="last", l2=0.1)
    broken = replace(found, **change(found))
    for call in (
        lambda: headkit.fit(model, broken, levels="last"),
        lambda: headkit.fit(model, found, val=broken),
        lambda: headkit.evaluate(head, broken, backbone=model),
        lambda: headkit.extract(model, broken),
    ):
        with pytest.raises(headkit.DataError, match=message):
            call()


def test_images_that_differ_in_a_level_alone_are_no_copies(shapes: Path) -> None:
    model = random_backbone()
    found = headkit.extract(model, shapes, levels=["layer1"], **NO_WORKERS)
    found.x[1] = found.x[0]
    for levels, count in (("last", 1), ("layer1", 0)):
        head = headkit.fit(model, found, levels=levels, l2=0.1)
        assert head.metrics["num_duplicates"] == count
    found.levels["layer1"][1] = found.levels["layer1"][0]
    head = headkit.fit(model, found, levels="layer1", l2=0.1)
    assert head.metrics["num_duplicates"] == 1


def test_extract_selects_the_levels_of_features(shapes: Path) -> None:
    model = random_backbone()
    found = headkit.extract(model, shapes, val=shapes, levels="all", **NO_WORKERS)
    again = headkit.extract(model, found, levels=["layer1"])
    assert again.val is not None
    for one in (again, again.val):
        assert list(one.levels) == ["layer1"]
        assert np.array_equal(one.levels["layer1"], found.levels["layer1"])
    with pytest.raises(headkit.DataError, match="has features with no levels, but act1"):
        headkit.extract(model, (found.x, found.y), levels="all")


def test_heads_over_levels_are_compared_on_features(shapes: Path, small_weights: Path) -> None:
    model = headkit.load_backbone("test_resnet", small_weights)
    found = headkit.extract(model, shapes, levels="all", **NO_WORKERS)
    a, b = (headkit.fit(model, found, levels=levels, l2=0.1) for levels in ("last", "layer1"))
    options: dict[str, Any] = {"weights": small_weights, "workers": 0}
    expected = headkit.diff_heads(a, b, shapes, **options).agreement
    assert headkit.diff_heads(a, b, found, **options).agreement == expected


def test_an_extended_head_is_tested_on_features_with_levels(shapes: Path, tmp_path: Path) -> None:
    train, new, test = _parts(shapes)
    options: dict[str, Any] = {**NO_WORKERS, "cache": tmp_path}
    head = headkit.fit(random_backbone(), train, **options)
    found = headkit.extract(random_backbone(), test, levels="all", **options)
    expected = headkit.fit(random_backbone(), new, extend=head, test=test, **options)
    assert expected.levels
    assert _same(headkit.fit(random_backbone(), new, extend=head, test=found, **options), expected)
    with pytest.raises(headkit.DataError, match="has features, but a head is extended by images"):
        headkit.fit(random_backbone(), found, extend=head, **options)


def test_an_interrupted_comparison_knows_features_by_their_levels_too(shapes: Path) -> None:
    found = headkit.extract(random_backbone(), shapes, levels=["layer1"], **NO_WORKERS)
    changed = {"layer1": found.levels["layer1"] + 1}
    forms = [found, replace(found, levels={}), replace(found, levels=changed)]
    assert len({digest_data(open_data(form)[0]) for form in forms}) == 3
