import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, repeat
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import headkit
from headkit.adapters.backbone.classifier import classifier_tensors
from headkit.adapters.backbone.delta.delta import Delta
from headkit.adapters.backbone.delta.merge import merge_delta
from headkit.adapters.backbone.fingerprint import backbone_info
from headkit.adapters.heads.tasks import get_task
from headkit.adapters.tuning.change import Change
from headkit.adapters.tuning.layers import find_layers
from headkit.adapters.tuning.methods import METHODS
from headkit.adapters.tuning.trainable import Trainable
from headkit.adapters.tuning.training import Schedule, train

IMAGES = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 0])
SCHEDULE = Schedule(rate=1e-2, steps=3)


def make(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"img_size": 96} if "vit" in architecture else {}  # levit, too
    model: nn.Module = timm.create_model(architecture, num_classes=3, **options).eval()
    for parameter in model.parameters():  # some layers start as zeros, which hides their changes
        parameter.data += 0.02 * torch.randn(parameter.shape)
    return model


def tune(model: nn.Module, method: str, rank: int = 2) -> tuple[Trainable, Delta]:
    base = backbone_info(model).fingerprint
    changes = METHODS[method].place(model, find_layers(model, IMAGES[:1]), rank)
    trainable = Trainable(model, changes)
    train(trainable, lambda _: repeat((IMAGES, TARGETS)), get_task("multiclass"), SCHEDULE)
    return trainable, Delta(method, base, {k: v.numpy() for k, v in trainable.trained().items()})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_convnext"])
def test_merged_changes_give_the_logits_of_the_training(architecture: str, method: str) -> None:
    model = make(architecture)
    plain = copy.deepcopy(model)
    trainable, delta = tune(model, method)
    with torch.inference_mode():
        expected = model(IMAGES)
        before = plain(IMAGES)
    plain.load_state_dict(classifier_tensors(model), strict=False)
    merge_delta(plain, delta)
    with torch.inference_mode():
        difference = (plain(IMAGES) - expected).abs().max()
    assert difference <= 1e-5 * expected.abs().max()
    assert (before - expected).abs().max() > 1e-2 * expected.abs().max()
    assert trainable.tensors


@pytest.mark.parametrize("method", METHODS)
def test_training_changes_what_the_delta_says_and_nothing_else(method: str) -> None:
    model = make("test_vit")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, delta = tune(model, method)
    own = set(classifier_tensors(model))
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])} - own
    values = {n.removesuffix(".value") for n in delta.tensors if n.endswith(".value")}
    assert changed == values


def test_statistics_of_batch_norm_stay() -> None:
    model = make("test_resnet")
    before = {n: b.clone() for n, b in model.named_buffers()}
    tune(model, "affine")
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_affine_adds_no_scale_in_front_of_batch_norm_but_in_front_of_other_norms() -> None:
    resnet, convnext = make("test_resnet"), make("test_convnext")
    found = {one.path: one for one in find_layers(resnet, IMAGES[:1])}
    assert all(one.before_norm for one in found.values())
    assert not any(one.before_norm for one in find_layers(convnext, IMAGES[:1]))
    assert "fc" not in found


def test_layers_whose_weights_are_standardized_have_no_scale() -> None:
    model = make("test_nfnet")
    names = {type(m).__name__ for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert "ScaledStdConv2dSame" in names or "ScaledStdConv2d" in names
    kept = [model.get_submodule(one.path) for one in find_layers(model, IMAGES[:1])]
    assert not any("Std" in type(module).__name__ for module in kept)


def test_finding_layers_leaves_the_model_as_it_is() -> None:
    model = make("test_vit")
    before = backbone_info(model).fingerprint
    find_layers(model, IMAGES[:1])
    assert backbone_info(model).fingerprint == before
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_killed_training_continues_with_the_same_bits(killed_after: int, tmp_path: Path) -> None:
    schedule = replace(SCHEDULE, steps=5)
    path = tmp_path / "checkpoint.safetensors"

    class Killed(Exception):
        pass

    def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in count(first):
            generator = torch.Generator().manual_seed(step)
            yield torch.randn(4, 3, 96, 96, generator=generator), TARGETS

    def run(kill: int | None, checkpoint: Path | None) -> dict[str, Tensor]:
        def some(first: int) -> Iterator[tuple[Tensor, Tensor]]:
            for step, batch in zip(count(first), batches(first), strict=False):
                if step == kill:
                    raise Killed
                yield batch

        model = make("test_resnet")
        trainable = Trainable(model, METHODS["affine"].place(model, (), 0))
        task = get_task("multiclass")
        train(trainable, some, task, schedule, checkpoint=checkpoint, identity="a", every=1)
        return trainable.state()

    expected = run(None, None)
    with pytest.raises(Killed):
        run(killed_after, path)
    seen: list[int] = []
    model = make("test_resnet")
    trainable = Trainable(model, METHODS["affine"].place(model, (), 0))

    def note(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step, batch in zip(range(first, 5), batches(first), strict=False):
            seen.append(step)
            yield batch

    train(trainable, note, get_task("multiclass"), schedule, checkpoint=path, identity="a")
    assert seen == list(range(killed_after, 5))
    state = trainable.state()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_checkpoint_of_another_training_is_not_read(tmp_path: Path) -> None:
    path, seen = tmp_path / "checkpoint.safetensors", list[int]()
    for identity in "ab":
        model = make("test_resnet")
        trainable = Trainable(model, METHODS["bias"].place(model, (), 0))

        def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
            for step in range(first, SCHEDULE.steps):
                seen.append(step)
                yield IMAGES, TARGETS

        task = get_task("multiclass")
        train(trainable, batches, task, SCHEDULE, checkpoint=path, identity=identity)
    assert seen == [0, 1, 2, 0, 1, 2]


def test_changes_that_did_not_train_are_left_out() -> None:
    model = make("test_vit")
    changes = METHODS["lora"].place(model, find_layers(model, IMAGES[:1]), 2)
    assert not Trainable(model, changes).trained()


def test_head_over_levels_trains_with_the_backbone() -> None:
    model = headkit.adapt(make("test_resnet"), 3, levels="all")
    changes = METHODS["affine"].place(model, (), 0)
    trainable = Trainable(model, changes)
    assert set(trainable.head) == {"level_head.weight", "level_head.bias"}
    before = trainable.state()
    train(trainable, lambda _: repeat((IMAGES, TARGETS)), get_task("multiclass"), SCHEDULE)
    after = trainable.state()
    assert all(not torch.equal(before[name], after[name]) for name in trainable.head)
    assert trainable.trained()


@pytest.mark.parametrize("method", ["affine", "last"])
def test_biases_that_a_model_keeps_in_eval_mode_are_trained_and_merged(method: str) -> None:
    model: Any = make("levit_128s")
    biases = model.stages[2].blocks[0].attn.attention_biases
    images = torch.randn(2, 3, 96, 96)
    plain = copy.deepcopy(model)
    with torch.no_grad():
        model(images), plain(images)  # both keep their biases now
    changes = [*METHODS[method].place(model, (), 0)]
    changes += [Change(n, "value") for n, p in model.named_parameters() if p is biases]
    base = backbone_info(plain).fingerprint
    trainable = Trainable(model, {change.parameter: change for change in changes}.values())
    task, targets = get_task("multiclass"), torch.tensor([0, 1])
    train(trainable, lambda _: repeat((images, targets)), task, SCHEDULE)
    with torch.inference_mode():
        expected = model(images)
    trained = trainable.trained()
    assert any("attention_biases" in name for name in trained)
    plain.load_state_dict(classifier_tensors(model), strict=False)
    merge_delta(plain, Delta(method, base, {k: v.numpy() for k, v in trained.items()}))
    with torch.inference_mode():
        difference = (plain(images) - expected).abs().max()
    assert difference <= 1e-5 * expected.abs().max()
