"""Heads over levels: their logits are those of plain timm and torch, and they come and go whole."""

from __future__ import annotations

import copy
import json
import pickle
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, linear

import headkit
from headkit.adapters.backbone.fingerprint import backbone_info
from headkit.adapters.backbone.level import Level
from headkit.adapters.heads.attach import attach_in_turn
from headkit.adapters.heads.head import Head
from tests.backbones import SHORT, SMALL, active_backbone

Last = Callable[[Any, Tensor], Tensor]
"""Function of a model and images that returns the last features as one row."""


def pooled(level: Level, output: Any) -> Tensor:
    """The definition of docs/head-file.md, with torch's own adaptive pooling, for square images."""
    y = output if level.item is None else output[level.item]
    tokens = []
    if level.layout == "NHWC":
        y = y.permute(0, 3, 1, 2)
    elif level.layout == "NLC":
        tokens = [y[:, 0]] if level.prefix else []
        y = y[:, level.prefix :].transpose(1, 2)
        y = y.unflatten(2, [int(y.shape[2] ** 0.5)] * 2)
    cells = adaptive_avg_pool2d(y, 4)
    deviation = cells.var((2, 3), correction=0).sqrt()
    return torch.cat([avg_pool2d(cells, 2).flatten(1), cells.amax((2, 3)), deviation, *tokens], 1)


def logits(plain: nn.Module, head: Head, last: Last, x: Tensor) -> Tensor:
    """Logits of a head on a timm model, by hooks on the modules that the head names."""
    vectors: dict[str, Tensor] = {}
    for level in head.levels[1:]:

        def keep(_module: nn.Module, _args: Any, output: Any, level: Level = level) -> None:
            vectors[level.name] = pooled(level, output)

        plain.get_submodule(level.name.partition(":")[0]).register_forward_hook(keep)
    with torch.no_grad():
        vectors["last"] = last(plain, x)
    row = torch.cat([vectors[level.name] for level in head.levels], 1)
    tensors = {name: torch.from_numpy(value) for name, value in head.tensors.items()}
    return linear(row, tensors["level_head.weight"], tensors["level_head.bias"])


def pre_logits(model: Any, x: Tensor) -> Tensor:
    features: Tensor = model.forward_head(model.forward_features(x), pre_logits=True)
    return features.flatten(1)


def both_tokens(model: Any, x: Tensor) -> Tensor:
    tokens: Tensor = model.forward_features(x)
    return tokens[:, :2].flatten(1)


def class_token_of_each_branch(model: Any, x: Tensor) -> Tensor:
    return torch.cat([tokens[:, 0] for tokens in model.forward_features(x)], 1)


def class_token(model: Any, x: Tensor) -> Tensor:
    tokens: Tensor = model.forward_features(x)
    return tokens[:, 0]


def mean_of_each_stage(model: Any, x: Tensor) -> Tensor:
    inputs: dict[int, Tensor] = {}
    for number, module in enumerate(model.heads):

        def keep(_module: nn.Module, args: Any, number: int = number) -> None:
            inputs[number] = args[0]

        module.register_forward_pre_hook(keep)
    model(x)
    return torch.cat([inputs[number] for number in sorted(inputs)], 1)


CASES: dict[str, tuple[dict[str, Any], Last]] = {
    "test_resnet": ({}, pre_logits),
    "resnet18": ({}, pre_logits),
    "test_vit": ({}, pre_logits),
    "vit_tiny_patch16_224": ({"depth": 5}, pre_logits),
    "deit_tiny_distilled_patch16_224": ({"depth": 2}, both_tokens),
    "crossvit_tiny_240": (SHORT["crossvit_tiny_240"], class_token_of_each_branch),
    "volo_d1_224": ({}, class_token),
    "efficientvim_m1": ({"depths": (1, 1, 1)}, mean_of_each_stage),
    "dla46x_c": (SHORT["dla46x_c"], pre_logits),
    "levit_128s": (SHORT["levit_128s"], pre_logits),
}


def trained(architecture: str, num_classes: int = 3, **arguments: Any) -> tuple[Any, Tensor]:
    """A model with a head over all its levels and random weights, and an input."""
    model = headkit.adapt(active_backbone(architecture, **arguments), num_classes, levels="all")
    torch.manual_seed(3)
    nn.init.normal_(model.get_parameter("level_head.weight"), std=0.1)
    nn.init.normal_(model.get_parameter("level_head.bias"))
    size = model.pretrained_cfg["input_size"][1:]  # type: ignore[index]
    return model, torch.randn(2, 3, *size)


@pytest.mark.parametrize("architecture", CASES)
def test_logits_are_those_of_plain_timm_and_survive_a_file(
    architecture: str, tmp_path: Path
) -> None:
    arguments, last = CASES[architecture]
    backbone = backbone_info(active_backbone(architecture, **arguments))
    model, x = trained(architecture, **arguments)
    assert backbone_info(model) == backbone
    head = headkit.save_head(model, tmp_path / "head.safetensors", ["a", "b", "c"])
    plain = timm.create_model(architecture, **arguments).eval()
    plain.load_state_dict(active_backbone(architecture, **arguments).state_dict())
    with torch.no_grad():
        found = model(x)
        expected = logits(plain, head, last, x)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        row = headkit.features(model, x)
        assert isinstance(row, Tensor)
        assert list(row.shape) == [2, sum(level.width for level in head.levels)]
        assert torch.equal(headkit.classify(model, row), found)
        fresh = active_backbone(architecture, **arguments)
        assert torch.equal(headkit.attach(fresh, tmp_path / "head.safetensors")(x), found)
    again = headkit.head_of(fresh)
    assert again.with_changes(created=head.created) == head


def test_model_with_a_head_over_levels_is_a_plain_module() -> None:
    plain = {name for name in active_backbone().state_dict() if not name.startswith("fc.")}
    model, x = trained(SMALL)
    added = {"fc.weight", "fc.bias", "level_head.weight", "level_head.bias"}
    assert set(model.state_dict()) == plain | added
    assert list(model.state_dict()["fc.weight"].shape) == [1, 96]
    with torch.no_grad():
        expected = model(x)
        copied = copy.deepcopy(model)
        unpickled = pickle.loads(pickle.dumps(model))  # noqa: S301  # our own bytes
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(copied(x), expected)
        assert torch.equal(unpickled(x), expected)
        assert torch.equal(model(x), torch.zeros(2, 3))
    # Hooks of the copy go with its head.
    headkit.adapt(copied, 2)
    assert list(copied(x).shape) == [2, 2]
    assert torch.equal(unpickled(x), expected)


def test_only_the_head_over_levels_learns() -> None:
    model, x = trained(SMALL)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {"level_head.weight", "level_head.bias"}
    model.train()
    assert model.level_head.training
    assert not model.layer1.training
    before = backbone_info(model)
    torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 1])).backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(model.level_head.parameters(), lr=0.1).step()
    assert backbone_info(model) == before


def test_every_other_classifier_removes_the_level_head_and_its_hooks(tmp_path: Path) -> None:
    model, x = trained(SMALL)
    with_levels = headkit.head_of(model)
    ordinary = headkit.head_of(headkit.adapt(active_backbone(), 4))
    replacements: list[Callable[[Any], Any]] = [
        lambda m: headkit.attach(m, ordinary),
        lambda m: headkit.adapt(m, 4),
        lambda m: headkit.adapt(m, 4, kind="mlp"),
        lambda m: m.reset_classifier(4),
    ]
    for replace in replacements:
        replace(model)
        assert not hasattr(model, "level_head")
        assert not any(m._forward_hooks for m in model.modules())
        assert list(model(x).shape) == [2, 4]
        assert "reset_classifier" not in vars(model)
        headkit.attach(model, with_levels)
    with torch.no_grad():
        expected = headkit.attach(active_backbone(), with_levels)(x)
        assert torch.equal(model(x), expected)
        attach_in_turn(model, [with_levels, ordinary, with_levels])
        assert torch.equal(model(x), expected)


def test_hand_made_head_over_two_levels_reads_only_these() -> None:
    backbone = active_backbone()
    levels = {level.name: level for level in headkit.levels(backbone)}
    chosen = (levels["layer3"], levels["last"])
    head = headkit.head_of(headkit.adapt(active_backbone(), 2))
    width = sum(level.width for level in chosen)
    weight = np.random.default_rng(0).normal(size=(2, width)).astype(np.float32)
    head = head.with_changes(
        levels=chosen,
        kind="linear",
        tensors={"level_head.weight": weight, "level_head.bias": np.zeros(2, np.float32)},
    )
    model, x = headkit.attach(backbone, head), torch.randn(2, 3, 160, 160)
    outputs: list[Tensor] = []
    plain = timm.create_model(SMALL).eval()
    plain.load_state_dict(active_backbone().state_dict())
    plain.get_submodule("layer3").register_forward_hook(lambda *args: outputs.append(args[2]))
    with torch.no_grad():
        last = pre_logits(plain, x)
        row = torch.cat([pooled(levels["layer3"], outputs[0]), last], 1)
        assert (model(x) - row @ torch.from_numpy(weight).T).abs().max() <= 1e-4


def test_levels_that_the_backbone_lacks_are_refused_and_the_model_stays() -> None:
    model, x = trained(SMALL)
    head = headkit.head_of(model)
    other = headkit.adapt(active_backbone(), 4)
    with torch.no_grad():
        before = other(x)
        for level in (Level("layer9", 1152, "NCHW"), Level("layer3", 1152, "NHWC")):
            changed = head.with_changes(levels=(*head.levels[:-1], level))
            with pytest.raises(headkit.BackboneMismatch, match=f"reads the level .*{level.name}"):
                headkit.attach(other, changed)
        assert torch.equal(other(x), before)


def test_levels_are_chosen_by_name() -> None:
    model = headkit.adapt(active_backbone(), 2, levels=["layer3", "layer1"])
    names = [level.name for level in headkit.head_of(model).levels]
    assert names == ["last", "layer1", "layer3"]
    with pytest.raises(headkit.ContractError, match="has no level 'layer9'"):
        headkit.adapt(active_backbone(), 2, levels=["layer9"])
    with pytest.raises(ValueError, match="kind is 'mlp', but a classifier over levels is linear"):
        headkit.adapt(active_backbone(), 2, "mlp", levels="all")


def test_threads_that_share_a_model_get_their_own_logits() -> None:
    model, _ = trained(SMALL)
    inputs = [torch.randn(2, 3, 160, 160) for _ in range(4)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        with torch.no_grad():
            for _ in range(10):
                if not torch.equal(model(inputs[number]), expected[number]):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_features_with_levels_of_such_a_model_are_those_of_the_backbone() -> None:
    model, x = trained(SMALL)
    with torch.no_grad():
        found = headkit.features(model, x, levels="all")
        expected = headkit.features(active_backbone(), x, levels="all")
    assert list(found) == list(expected)
    for name, vector in expected.items():
        assert torch.equal(found[name], vector)


def test_plain_timm_loads_the_other_tensors_of_the_model(tmp_path: Path) -> None:
    model, _ = trained(SMALL)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    plain = timm.create_model(SMALL, num_classes=1)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    missing = plain.load_state_dict(state, strict=False)
    assert missing.missing_keys == []
    assert set(missing.unexpected_keys) == {"level_head.weight", "level_head.bias"}


def test_reader_in_the_specification_computes_the_logits(tmp_path: Path) -> None:
    document = (Path(__file__).parents[3] / "docs/head-file.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", document, re.DOTALL | re.M)
    (reader,) = (block for block in blocks if "level_head.weight" in block)
    assert len(reader.splitlines()) <= 10
    model, images = trained(SMALL)
    path = tmp_path / "head.safetensors"
    headkit.save_head(model, path)
    plain = timm.create_model(SMALL).eval()
    plain.load_state_dict(active_backbone().state_dict())
    plain.reset_classifier(0)
    names: dict[str, Any] = {
        "json": json,
        "torch": torch,
        "linear": linear,
        "safe_open": safetensors.safe_open,
        "adaptive_avg_pool2d": adaptive_avg_pool2d,
        "avg_pool2d": avg_pool2d,
        "load_file": safetensors.torch.load_file,
        "path": path,
        "model": plain,
        "images": images,
    }
    with torch.no_grad():
        exec(compile(reader, "docs/head-file.md", "exec"), names)  # noqa: S102
        expected = model(images)
    assert (names["logits"] - expected).abs().max() <= 1e-5 * expected.abs().max()
