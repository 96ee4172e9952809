import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import nn

import headkit
from headkit.adapters.backbone.delta.delta import Delta
from headkit.adapters.backbone.fingerprint import backbone_info
from tests.backbones import SMALL, random_backbone
from tests.deltas import head_with_delta, random_delta

IMAGES = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def tuned() -> nn.Module:
    model: nn.Module = random_backbone(seed=0)
    return model


def test_head_with_a_delta_gives_the_same_bits_on_a_fresh_backbone(
    tuned: nn.Module, tmp_path: Path
) -> None:
    head = head_with_delta(tuned)
    head.save(tmp_path / "head.safetensors")
    fresh = random_backbone(seed=0)
    before = fresh(IMAGES)
    loaded = headkit.Head.load(tmp_path / "head.safetensors")
    assert loaded == head
    headkit.attach(fresh, loaded)
    assert torch.equal(fresh(IMAGES), tuned(IMAGES))
    assert not torch.equal(before[:, :3], fresh(IMAGES))
    assert headkit.head_of(fresh, head.label_names).delta is not None
    assert backbone_info(fresh).fingerprint == head.backbone.fingerprint


def test_numpy_computes_the_weights_from_the_specification(
    tuned: nn.Module, tmp_path: Path
) -> None:
    head_with_delta(tuned).save(tmp_path / "head.safetensors")
    plain = {name: value.numpy() for name, value in random_backbone(seed=0).state_dict().items()}
    for name, tensor in sorted(load_file(tmp_path / "head.safetensors").items()):
        if not name.startswith("delta."):
            continue
        parameter, operation = name.removeprefix("delta.").rsplit(".", 1)
        old = plain[parameter]
        if operation == "value":
            plain[parameter] = tensor
        elif operation == "scale":
            plain[parameter] = old * tensor.reshape(-1, *[1] * (old.ndim - 1))
        elif operation == "up":
            down = load_file(tmp_path / "head.safetensors")[f"delta.{parameter}.down"]
            for column, row in zip(tensor.T, down, strict=True):
                plain[parameter] = plain[parameter] + np.multiply.outer(column, row)
    for name, value in tuned.state_dict().items():
        if not name.startswith("fc."):
            assert np.array_equal(value.numpy(), plain[name]), name


def test_head_file_requires_the_part_and_names_both_backbones(
    tuned: nn.Module, tmp_path: Path
) -> None:
    head_with_delta(tuned).save(tmp_path / "head.safetensors")
    with safe_open(tmp_path / "head.safetensors", "np") as file:
        description = json.loads(file.metadata()["head"])
    assert description["requires"] == ["delta"]
    assert description["delta"]["base"] == backbone_info(random_backbone(seed=0)).fingerprint
    assert description["backbone"]["fingerprint"] == backbone_info(tuned).fingerprint


def test_delta_never_ends_up_on_another_base(tuned: nn.Module) -> None:
    head = head_with_delta(tuned)
    other = random_backbone(seed=1)
    before = other(IMAGES)
    for force in (False, True):
        with pytest.raises(headkit.BackboneMismatch, match="fingerprint"):
            headkit.attach(other, head, force=force)
    assert torch.equal(other(IMAGES), before)


def test_head_without_its_delta_is_refused(tuned: nn.Module) -> None:
    head = head_with_delta(tuned)
    with pytest.raises(headkit.BackboneMismatch, match="load the weights that the head was"):
        headkit.attach(random_backbone(seed=0), head.merged())
    plain = headkit.head_of(headkit.adapt(random_backbone(seed=0), 3))
    with pytest.raises(headkit.BackboneMismatch, match="the changes of another head"):
        headkit.attach(tuned, plain)


def test_changed_delta_is_refused(tuned: nn.Module, tmp_path: Path) -> None:
    head = head_with_delta(tuned)
    assert head.delta is not None
    tensors = dict(head.delta.tensors)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + np.float32(1e-3)
    fresh = random_backbone(seed=0)
    before = fresh(IMAGES)
    changed = head.with_changes(delta=replace(head.delta, tensors=tensors))
    with pytest.raises(headkit.BackboneMismatch, match="changed after it was trained"):
        headkit.attach(fresh, changed)
    assert torch.equal(fresh(IMAGES), before)
    path = head.save(tmp_path / "head.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(headkit.HeadFormatError, match="checksum"):
        headkit.Head.load(path)


def test_delta_without_its_head_is_refused(tuned: nn.Module, tmp_path: Path) -> None:
    path = head_with_delta(tuned).save(tmp_path / "head.safetensors")
    with safe_open(path, "np") as file:
        metadata = {k: v for k, v in file.metadata().items() if k != "checksum"}
    tensors = load_file(path)
    for keep, message in ((True, "no tensor with that many rows"), (False, "has 0 tensors")):
        kept = {k: v for k, v in tensors.items() if k.startswith("delta.") == keep}
        save_file(kept, tmp_path / "part.safetensors", metadata)
        with pytest.raises(headkit.HeadFormatError, match=message):
            headkit.Head.load(tmp_path / "part.safetensors")
    description = json.loads(metadata["head"])
    del description["delta"], description["requires"]
    save_file(tensors, tmp_path / "part.safetensors", metadata | {"head": json.dumps(description)})
    with pytest.raises(headkit.HeadFormatError, match="no 'delta' in its description"):
        headkit.Head.load(tmp_path / "part.safetensors")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "has 0 tensors"),
        ({"layer.weight": np.ones(3)}, "expected the name of a parameter and one of"),
        ({"../x.value": np.ones(3)}, "expected the name of a parameter and one of"),
        ({"w.value": np.ones(3), "w.scale": np.ones(3)}, "has scale, value for 'w'"),
        ({"w.up": np.ones((3, 2))}, "has up for 'w'"),
        ({"w.up": np.ones((3, 2)), "w.down": np.ones((3, 4))}, r"up \[3, 2\] and down \[3, 4\]"),
        ({"w.scale": np.ones((3, 1))}, "expected one dimension"),
    ],
)
def test_hostile_tensors_are_refused(tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Delta("affine", "0" * 64, tensors)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("fc.weight.value", (3, 96), "changes the parameter fc.weight"),
        ("bn1.running_mean.value", (24,), "changes the parameter bn1.running_mean"),
        ("bn1.weight.value", (25,), "by value with the shape"),
    ],
)
def test_only_parameters_of_the_backbone_change(
    tuned: nn.Module, name: str, shape: tuple[int, ...], message: str
) -> None:
    base = backbone_info(tuned).fingerprint
    head = headkit.head_of(headkit.adapt(tuned, 3))
    delta = Delta("affine", base, {name: np.ones(shape, np.float32)})
    with pytest.raises(headkit.BackboneMismatch, match=message):
        headkit.attach(
            tuned,
            head.with_changes(delta=delta, backbone=replace(head.backbone, fingerprint="0" * 64)),
        )


def test_models_that_share_tensors_keep_theirs(tuned: nn.Module) -> None:
    from headkit.adapters.backbone.module_copy import copy_structure

    head = head_with_delta(tuned)
    fresh = random_backbone(seed=0)
    before = fresh(IMAGES)
    headkit.attach(copy_structure(fresh, share_tensors=True), head)
    assert torch.equal(fresh(IMAGES), before)


def test_load_backbone_of_merges(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(random_backbone(seed=0).state_dict(), weights)
    tuned = headkit.load_backbone(SMALL, weights)
    head = head_with_delta(tuned)
    loaded = headkit.load_backbone_of(head, weights)
    assert torch.equal(headkit.attach(loaded, head)(IMAGES), tuned(IMAGES))
    head.save(tmp_path / "head.safetensors")
    for delta in (head, tmp_path / "head.safetensors"):
        merged = headkit.load_backbone(SMALL, weights, delta=delta)
        assert backbone_info(merged).fingerprint == head.backbone.fingerprint
    with pytest.raises(headkit.HeadFormatError, match="has no delta"):
        headkit.load_backbone(SMALL, weights, delta=head.merged())


def test_shared_tensors_change_together() -> None:
    model = timm.create_model("test_vit", num_classes=2).eval()
    model.blocks[1].norm1 = model.blocks[0].norm1
    delta = Delta(
        "affine",
        backbone_info(model).fingerprint,
        {"blocks.0.norm1.weight.value": np.full(64, 2, np.float32)},
    )
    from headkit.adapters.backbone.delta.merge import merge_delta

    merge_delta(model, delta)
    assert model.blocks[1].norm1.weight[0] == 2
    assert model.blocks[1].norm1 is model.blocks[0].norm1


def test_random_delta_uses_all_operations(tuned: nn.Module) -> None:
    found = {name.rpartition(".")[2] for name in random_delta(tuned).tensors}
    assert found == {"value", "scale", "up", "down"}
