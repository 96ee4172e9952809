"""Levels against plain timm: ``forward_intermediates``, hooks and ``adaptive_avg_pool2d``."""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

import headkit
from headkit.adapters.backbone.forward import Backbone
from headkit.adapters.backbone.level import LAST, Level
from headkit.adapters.backbone.levels import (
    LevelRecorder,
    choose_levels,
    examine_levels,
    find_levels,
    last_level,
    to_map,
)
from headkit.adapters.fitting.classifier import level_sets, plan_classifier


def _model(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    model: Any = timm.create_model(name, **kwargs).eval()
    return model


def _x(height: int, width: int, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def _vector(level_map: Tensor, class_token: Tensor | None = None) -> Tensor:
    """The definition of a level's vector, written out."""
    grid = adaptive_avg_pool2d(level_map, 4)
    cells = grid.flatten(2)
    mean = cells.mean(2, keepdim=True)
    deviation = ((cells - mean) ** 2).mean(2) ** 0.5
    parts = [avg_pool2d(grid, 2).flatten(1), cells.max(2).values, deviation]
    return torch.cat(parts if class_token is None else [*parts, class_token], 1)


def _close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max()))
    )


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("resnet18", (96, 96), {}),  # maps
        ("resnet18", (100, 135), {}),  # not square, and no multiple of 4 after the strides
        ("tf_efficientnet_lite0", (64, 96), {}),
        ("swin_tiny_patch4_window7_224", (224, 224), {}),  # channels last
        ("swin_tiny_patch4_window7_224", (96, 160), {"img_size": (96, 160), "window_size": 4}),
        ("hiera_tiny_224", (224, 224), {}),  # tokens in another order
        ("hiera_tiny_224", (96, 160), {"img_size": (96, 160)}),
        ("levit_128s", (224, 224), {}),  # tokens without a class token
        ("pit_ti_224", (224, 224), {}),  # an item of a tuple
    ],
)
def test_vectors_are_pooled_from_what_timm_returns(
    name: str, size: tuple[int, int], options: dict[str, Any]
) -> None:
    model, x = _model(name, **options), _x(*size)
    with torch.no_grad():
        *maps, _deepest = model.forward_intermediates(x, intermediates_only=True)
        found = headkit.features(model, x, levels="all")
        last = headkit.features(model, x)
        assert isinstance(last, Tensor)
    assert torch.equal(found.pop("last"), last.flatten(1))
    assert len(found) == len(maps)
    for vector, level_map in zip(found.values(), maps, strict=True):
        assert vector.shape == (2, 6 * level_map.shape[1])
        _close(vector, _vector(level_map))


@pytest.mark.parametrize(
    ("name", "size", "options", "prefix"),
    [
        ("vit_tiny_patch16_224", (224, 224), {}, 1),
        ("vit_tiny_patch16_224", (64, 160), {"img_size": (64, 160)}, 1),
        ("vit_tiny_patch16_224", (80, 240), {"dynamic_img_size": True}, 1),
        ("deit_tiny_distilled_patch16_224", (224, 224), {}, 2),
        ("eva02_tiny_patch14_224", (98, 56), {"img_size": (98, 56)}, 1),
        ("vit_small_patch14_reg4_dinov2", (112, 56), {"img_size": (112, 56)}, 5),
        ("vit_base_patch16_siglip_224", (64, 48), {"img_size": (64, 48)}, 0),
    ],
)
def test_tokens_become_maps_and_the_first_prefix_token_follows(
    name: str, size: tuple[int, int], options: dict[str, Any], prefix: int
) -> None:
    """Of twelve blocks, the levels are those at the end of the first three quarters."""
    model, x = _model(name, num_classes=2, **options), _x(*size)
    names = ["blocks.2", "blocks.5", "blocks.8"]
    assert [level.name for level in find_levels(model)] == names
    assert {level.prefix for level in find_levels(model)} == {prefix}
    with torch.no_grad():
        found = headkit.features(model, x, levels="all")
        maps = model.forward_intermediates(x, indices=[2, 5, 8], intermediates_only=True)
        outputs: dict[str, Tensor] = {}
        for path in names:
            model.get_submodule(path).register_forward_hook(
                lambda _module, _args, out, path=path: outputs.update({path: out})
            )
        model(x)
    for path, level_map in zip(names, maps, strict=True):
        _close(found[path], _vector(level_map, outputs[path][:, 0] if prefix else None))


def test_crossvit_has_a_level_for_each_branch_of_a_block() -> None:
    """The model scales its images to 240 x 240 pixels, so the grid is square for any image."""
    model, x = _model("crossvit_9_240"), _x(120, 240)
    names = [level.name for level in find_levels(model)]
    assert names == [f"blocks.{block}:{branch}" for branch in (0, 1) for block in (0, 1, 2)][:-1]
    with torch.no_grad():
        *maps, _deepest = model.forward_intermediates(x, intermediates_only=True)
        found = headkit.features(model, x, levels="all")
    for name, level_map in zip(names, maps, strict=True):
        _close(found[name][:, : 6 * level_map.shape[1]], _vector(level_map))


def test_quadrants_show_where_something_is() -> None:
    model, x = _model("hiera_tiny_224"), torch.zeros(1, 3, 224, 224)
    x[..., 112:, :112] = 1
    with torch.no_grad():
        empty = headkit.features(model, torch.zeros_like(x), levels=["blocks.0"])["blocks.0"]
        found = headkit.features(model, x, levels=["blocks.0"])["blocks.0"]
    change = (found - empty)[0, : 4 * 96].view(96, 4).abs().mean(0)
    assert int(change.argmax()) == 2  # bottom left
    assert change[2] > 3 * change[[0, 1, 3]].max()


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "volo_d1_224"])
def test_hooks_leave_the_logits_as_they_are(name: str) -> None:
    model, x = _model(name), _x(224, 224)
    with torch.no_grad():
        logits = model(x)
        with LevelRecorder(model, find_levels(model)) as recorder:
            assert torch.equal(model(x), logits)
        assert set(recorder.vectors()) == {level.name for level in find_levels(model)}
        assert torch.equal(model(x), logits)
    assert not any(module._forward_hooks for module in model.modules())


def test_levels_of_an_architecture_are_those_of_the_model() -> None:
    expected = [("last", 512), ("act1", 6 * 64)]
    expected += [(f"layer{n}", 6 * 32 * 2**n) for n in (1, 2, 3)]
    assert [(level.name, level.width) for level in headkit.levels("resnet18")] == expected
    assert headkit.levels(_model("resnet18", num_classes=0)) == headkit.levels("resnet18")


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("deit_tiny_distilled_patch16_224", 2 * 192),  # a class and a distillation token
        ("crossvit_9_240", 128 + 256),  # two branches
        ("volo_d1_224", 384),  # without the tokens of the auxiliary classifier
        ("levit_128s", 384),  # two classifiers of the same features
        ("dla34", 512),  # the classifier is a convolution
    ],
)
def test_last_level_is_one_row(name: str, width: int) -> None:
    model = _model(name)
    assert last_level(model) == Level(LAST, width)
    with torch.no_grad():
        size = timm.models.get_model_input_config(model)["input_size"]
        found = headkit.features(
            model, _x(size[1], size[2], batch=1), levels=find_levels(model)[0].name
        )
    assert found["last"].shape == (1, width)


def test_level_keeps_its_values_if_the_next_module_writes_into_it() -> None:
    """``act1`` works in place, on the output of ``bn1``."""
    model, x = _model("resnet18"), _x(64, 64)
    assert model.act1.inplace
    with torch.no_grad():
        expected = model.bn1(model.conv1(x))
        with LevelRecorder(model, [Level("bn1", 6 * 64, "NCHW")]) as recorder:
            model(x)
    assert (expected < 0).any()
    _close(recorder.vectors()["bn1"], _vector(expected))


def test_level_is_not_called_after_a_module_that_returns_its_input() -> None:
    """Small images do well without the pooling of the stem."""
    model = _model("resnet18")
    model.maxpool = torch.nn.Identity()
    assert [level.name for level in find_levels(model)] == ["act1", "layer1", "layer2", "layer3"]


def test_relu_that_timm_applies_to_a_copy_is_left_out() -> None:
    model, x = _model("legacy_xception"), _x(96, 96)
    found = examine_levels(model)
    assert [level.name for level in found.levels] == ["act2", "block1", "block2", "block11"]
    with torch.no_grad():
        block = model.act2(model.bn2(model.conv2(model.act1(model.bn1(model.conv1(x))))))
        block = model.block1(block)
        maps = model.forward_intermediates(x, intermediates_only=True)
        vectors = headkit.features(model, x, levels="all")
    assert torch.equal(block.relu(), maps[1])
    assert (block < 0).any()
    _close(vectors["block1"], _vector(block))


def test_exported_backbone_returns_the_levels_after_the_branches() -> None:
    model, x = _model("test_vit"), _x(160, 160)
    chosen = find_levels(model)
    with torch.no_grad():
        program = torch.export.export(
            Backbone(model, chosen), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        images = _x(160, 160, batch=3)
        expected = headkit.features(model, images, levels="all")
        outputs = program.module()(images)
    assert len(outputs) == 1 + len(chosen)
    for output, vector in zip(outputs, expected.values(), strict=True):
        _close(output, vector)


def test_levels_are_chosen_by_name_in_the_order_of_the_model() -> None:
    model = _model("resnet18")
    assert choose_levels(model, "all") == find_levels(model)
    names = [level.name for level in choose_levels(model, ["layer3", "last", "act1"])]
    assert names == ["last", "act1", "layer3"]
    with pytest.raises(
        headkit.ContractError,
        match=r"no level 'layer9', expected some of last, act1, layer1, layer2, layer3",
    ):
        headkit.features(model, _x(64, 64), levels=["layer9"])


def test_levels_can_be_named_in_several_ways() -> None:
    model = _model("test_resnet")
    _, level1, *_, level3 = headkit.levels(model)
    names = [level1.name, level3.name]
    ways: list[Any] = [
        names,
        tuple(reversed(names)),
        f"{level1.name}, {level3.name}",
        [f"{level3.name},{level1.name}"],
        [level1, level3],
        (level1.name, level3),
        [*names, *names, level1],
    ]
    for given in ways:
        assert choose_levels(model, given) == (level1, level3)
    assert choose_levels(model, level3) == choose_levels(model, level3.name) == (level3,)
    assert choose_levels(model, headkit.levels(model)) == headkit.levels(model)
    assert choose_levels(model, ["all", "last"]) == headkit.levels(model)
    x = _x(160, 160)
    with torch.no_grad():
        found = headkit.features(model, x, levels=[level3, level1.name])
        expected = headkit.features(model, x, levels="all")
    assert list(found) == [LAST, level1.name, level3.name]
    assert all(torch.equal(found[name], expected[name]) for name in found)
    adapted = headkit.adapt(model, 2, levels=f"{level1.name},{level3.name}")
    widths = expected[LAST].shape[1] + level1.width + level3.width
    assert adapted.get_submodule("level_head").weight.shape == (2, widths)


@pytest.mark.parametrize("empty", ["", " , ", [], (), [""]])
def test_empty_levels_are_refused(empty: Any, tmp_path: Path) -> None:
    model = _model("test_resnet", num_classes=3)
    calls: list[Callable[[], object]] = [
        lambda: headkit.features(model, _x(160, 160), levels=empty),
        lambda: headkit.adapt(model, 2, levels=empty),
        lambda: headkit.export(model, tmp_path / "model.onnx", levels=empty),
        lambda: level_sets(model, plan_classifier(model, None), empty, None),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="levels is empty, expected 'all', 'last' or names"):
            call()


def test_something_else_than_names_is_no_level() -> None:
    model = _model("test_resnet")
    with pytest.raises(ValueError, match="levels is 3, expected 'all', 'last' or names of levels"):
        choose_levels(model, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="levels has 3, expected 'all', 'last' or names of"):
        choose_levels(model, ["layer1", 3])  # type: ignore[list-item]


def test_fit_reads_levels_that_are_named_in_several_ways() -> None:
    model = _model("test_resnet")
    plan = plan_classifier(model, None)
    _, one, *_, other = headkit.levels(model)
    expected = ((LAST, one.name, other.name),)
    for given in (f"{other.name},{one.name}", [one, other], (LAST, other, one.name, one.name)):
        assert level_sets(model, plan, given, None) == expected
    assert level_sets(model, plan, ["last", "last"], None) == ()


def test_levels_are_chosen_among_those_of_the_features_unless_a_penalty_is_given() -> None:
    model = _model("test_resnet")
    plan = plan_classifier(model, None)
    for auto in ("auto", ["auto"], "auto,"):
        assert len(level_sets(model, plan, auto, None)) > 1
        assert level_sets(model, plan, auto, "mlp") == ()
        assert level_sets(model, plan, auto, None, 0.1) == ()
        assert level_sets(model, plan, auto, None, present=()) == ()
        assert level_sets(model, plan, auto, None, 0.1, present=("layer1",)) == ()
        found = level_sets(model, plan, auto, None, present=("layer3", "layer1"))
        assert found == ((LAST,), (LAST, "layer1", "layer3"))
    assert len(level_sets(model, plan, "all", None, 0.1)) == 1


def test_levels_of_something_that_is_no_model() -> None:
    with pytest.raises(headkit.UnknownArchitecture, match=r"'resnet19'; nearest: resnet1"):
        headkit.levels("resnet19")
    for call in (
        lambda: headkit.levels(3),  # type: ignore[arg-type]
        lambda: headkit.features(3, _x(64, 64)),  # type: ignore[call-overload]
        lambda: headkit.adapt(3, 2),  # type: ignore[arg-type]
    ):
        with pytest.raises(headkit.ContractError, match="model is of type int, expected a timm mo"):
            call()


@pytest.mark.parametrize("num_classes", [0, 10])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("test_resnet", [96, 5, 5]),  # a linear classifier fails
        ("levit_128s", [16, 384]),  # a norm in front of it fails
        ("test_vit", [101, 64]),  # it returns logits for each token
        ("test_convnext", [64, 5, 5]),
        ("test_mambaout", [5, 5, 256]),
    ],
)
def test_models_that_do_not_pool_say_so(name: str, shape: list[int], num_classes: int) -> None:
    model = _model(name, num_classes=num_classes, global_pool="")
    edge = model.pretrained_cfg["input_size"][-1]
    x = _x(edge, edge)
    message = ", expected [batch, channels], so they are not pooled: create the model with a "
    with pytest.raises(headkit.ContractError, match=re.escape(f"{[1, *shape]}{message}")):
        headkit.levels(model)
    with pytest.raises(headkit.ContractError, match=re.escape(f"{[2, *shape]}{message}")):
        headkit.features(model, x)
    with pytest.raises(headkit.ContractError, match=re.escape(message)):
        headkit.features(model, x, levels="all")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_no_images_are_refused(name: str) -> None:
    model = _model(name)
    for levels in (None, "all", "last"):
        with pytest.raises(ValueError, match=r"shape \[0, 3, 160, 160\], expected at least one im"):
            headkit.features(model, _x(160, 160, batch=0), levels=levels)


def test_levels_of_a_model_that_was_called_with_gradients() -> None:
    expected = headkit.levels("levit_128s")
    model = _model("levit_128s")
    model(_x(224, 224))  # keeps attention biases, which have gradients
    assert headkit.levels(model) == expected


def test_model_without_forward_intermediates_has_no_levels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(timm.models.resnet.ResNet, "forward_intermediates")
    model = _model("resnet18")
    assert find_levels(model) == ()
    with pytest.raises(headkit.ContractError, match="has no levels: timm's class has no forward_"):
        choose_levels(model, "all")


def test_intermediate_that_no_module_returns_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resnet = timm.models.resnet.ResNet
    original = resnet.forward_intermediates
    monkeypatch.setattr(
        resnet,
        "forward_intermediates",
        lambda self, *args, **kwargs: [m + 1 for m in original(self, *args, **kwargs)],
    )
    found = examine_levels(_model("resnet18"))
    assert found.levels == ()
    assert "no module returns what forward_intermediates returns as number 0" in found.reason


def test_method_that_fails_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError("not for this model")

    monkeypatch.setattr(timm.models.resnet.ResNet, "forward_intermediates", fail)
    reason = examine_levels(_model("resnet18")).reason
    assert reason == "forward_intermediates fails: NotImplementedError: not for this model"


def test_tokens_of_an_unknown_image_have_no_grid() -> None:
    level = Level("blocks.2", 6 * 8, "NLC")
    with pytest.raises(headkit.ContractError, match="levels need images"):
        to_map(torch.nn.Identity(), level, torch.zeros(1, 12, 8), None)
    level_map, prefix = to_map(torch.nn.Identity(), level, torch.zeros(1, 12, 8), (30, 40))
    assert level_map.shape == (1, 8, 3, 4)
    assert prefix is None
    with pytest.raises(headkit.ContractError, match="13 tokens of images of 32x32 pixels do not"):
        to_map(torch.nn.Identity(), level, torch.zeros(1, 13, 8), (32, 32))


def test_flipped_map_is_not_taken_for_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transposed map has the shape of the output if the map is square."""
    resnet = timm.models.resnet.ResNet
    original = resnet.forward_intermediates
    monkeypatch.setattr(
        resnet,
        "forward_intermediates",
        lambda self, *args, **kwargs: [m.mT for m in original(self, *args, **kwargs)],
    )
    assert examine_levels(_model("resnet18")).levels == ()


def test_levels_survive_their_json() -> None:
    for name in ("resnet18", "crossvit_9_240", "hiera_tiny_224"):
        levels = headkit.levels(name)
        assert [Level.from_json(level.to_json()) for level in levels] == list(levels)
        assert all(a != b for a, b in pairwise(levels))
