import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import headkit
from headkit.adapters.backbone.fingerprint import backbone_info
from headkit.adapters.features.disk_space import describe_cache
from headkit.adapters.tuning.tuner import Recipe, Tuner
from tests.backbones import random_backbone
from tests.choices import take_the_first, take_the_head

SIZE = 32
OPTIONS: dict[str, Any] = {"levels": "last", "workers": 0, "method": "lora", "rates": 1e-2}


def bars(count: int, seed: int) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Return noisy images with a bar, which stands or lies."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 100, (count, SIZE, SIZE, 3)).astype(np.uint8)
    for number in range(count):
        row, column = generator.integers(2, SIZE - 14, 2)
        height, width = (12, 2) if number % 2 else (2, 12)
        images[number, row : row + height, column : column + width] += 100
    return images, [["lies", "stands"][number % 2] for number in range(count)]


def backbone() -> Any:
    return random_backbone(img_size=SIZE)


@pytest.fixture(scope="module", autouse=True)
def _few_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, "num_steps", lambda *_: 60)
        yield


@pytest.fixture(scope="module")
def tuned() -> tuple[Any, headkit.Head]:
    model = backbone()
    return model, headkit.tune(model, bars(64, 0), val=bars(100, 1), cache=False, **OPTIONS)


def test_tuned_head_is_better_than_the_head_alone(tuned: tuple[Any, headkit.Head]) -> None:
    _, head = tuned
    facts = head.metrics["tuning"]
    assert facts["method"] == "lora"
    assert facts["losses"]["lora at rate 0.01"] < facts["losses"]["head"]
    assert facts["head"]["accuracy"] < head.metrics["accuracy"] - 0.1
    assert head.delta is not None
    assert facts["num_values"] == head.delta.num_values
    plain = headkit.fit(backbone(), bars(64, 0), val=bars(100, 1), levels="last", cache=False)
    assert facts["head"]["accuracy"] == plain.metrics["accuracy"]


def test_tuned_head_gives_its_metrics_on_a_new_backbone(
    tuned: tuple[Any, headkit.Head], tmp_path: Path
) -> None:
    model, head = tuned
    path = head.save(tmp_path / "head.safetensors")
    fresh = headkit.attach(backbone(), path)
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        assert torch.allclose(fresh(x), model(x), rtol=1e-5)
    for name, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    found = headkit.evaluate(path, bars(100, 1), backbone=backbone(), workers=0)
    assert found.metrics["accuracy"] == head.metrics["accuracy"]
    assert found.metrics["log_loss"] == pytest.approx(head.metrics["log_loss"], abs=1e-4)


def test_delta_belongs_to_the_backbone_before_the_tuning(tuned: tuple[Any, headkit.Head]) -> None:
    _, head = tuned
    assert head.delta is not None
    assert head.delta.base == backbone_info(backbone()).fingerprint
    assert head.delta.recipe["rate"] == 1e-2
    assert head.delta.recipe["augmentation"]["hflip"] == 0.5


def test_killed_tuning_continues_and_ends_with_the_same_bits(
    tuned: tuple[Any, headkit.Head], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = tuned

    def stop_at(name: str, step: int) -> Callable[..., None]:
        def progress(what: str, done: int, _: int | None) -> None:
            if what.startswith(name) and done == 32 * step:
                raise KeyboardInterrupt

        return progress

    def run(progress: Callable[..., None]) -> headkit.Head:
        options = {**OPTIONS, "workers": 2}
        return headkit.tune(
            backbone(), bars(64, 0), val=bars(100, 1), cache=tmp_path, progress=progress, **options
        )

    for name, step in (("lora at rate 0.01, part 2", 20), ("lora at rate 0.01, on all", 55)):
        with pytest.raises(KeyboardInterrupt):
            run(stop_at(name, step))
        kinds = {entry.kind for entry in describe_cache(tmp_path).entries}
        assert kinds == {"features", "checkpoints"}
    steps: list[tuple[str, int]] = []
    head = run(lambda what, done, _: steps.append((what, done)))
    trained = [(what, done) for what, done in steps if what.startswith("lora")]
    assert trained[0] == ("lora at rate 0.01, on all images", 32 * 51)
    assert len(trained) == 10
    assert head.delta is not None
    assert whole.delta is not None
    for mine, other in ((head.tensors, whole.tensors), (head.delta.tensors, whole.delta.tensors)):
        assert mine.keys() == other.keys()
        assert all(np.array_equal(mine[name], other[name]) for name in mine)
    assert {entry.kind for entry in describe_cache(tmp_path).entries} == {"features"}
    changed = headkit.attach(backbone(), head)
    with pytest.raises(headkit.DataError, match="tuning changed the backbone after they were"):
        headkit.fit(changed, bars(8, 2), extend=head, cache=tmp_path, levels="last", workers=0)


def test_head_stays_if_nothing_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headkit.adapters.tuning.choice.choose", take_the_head)
    monkeypatch.setattr(Recipe, "num_steps", lambda *_: 4)
    model, data = backbone(), bars(40, 0)
    before = copy.deepcopy(model.state_dict())
    head = headkit.tune(model, data, cache=False, **OPTIONS)
    assert head.delta is None
    assert head.metrics["tuning"]["method"] is None
    expected = headkit.fit(backbone(), data, levels="last", workers=0, cache=False)
    assert all(np.array_equal(head.tensors[name], expected.tensors[name]) for name in head.tensors)
    assert head.metrics["accuracy"] == expected.metrics["accuracy"]
    own = set(head.tensors)
    assert all(
        torch.equal(value, before[name])
        for name, value in model.state_dict().items()
        if name not in own
    )


def test_without_validation_images_a_fifth_measures_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headkit.adapters.tuning.choice.choose", take_the_first)
    monkeypatch.setattr(Recipe, "num_steps", lambda *_: 4)
    head = headkit.tune(
        backbone(), bars(50, 0), test=bars(20, 1), cache=False, **{**OPTIONS, "rates": [1, 1e-2]}
    )
    assert head.metrics["validation"] == "holdout"
    assert head.metrics["num_val"] == 10
    assert head.metrics["num_train"] == 50
    assert head.metrics["test"]["num_images"] == 20
    assert {"accuracy", "accuracy_interval"} <= head.metrics["tuning"]["head"].keys()


def test_images_that_decide_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []
    train = Tuner.train

    def note(self: Tuner, chosen: Any, candidate: Any, steps: int, name: str) -> Any:
        trained.append((name, chosen.clone()))
        return train(self, chosen, candidate, 4, name)

    monkeypatch.setattr(Tuner, "train", note)
    monkeypatch.setattr("headkit.adapters.tuning.choice.choose", take_the_first)
    headkit.tune(backbone(), bars(50, 0), cache=False, **{**OPTIONS, "rates": 1e-2})
    counts = [int(chosen.sum()) for _, chosen in trained]
    assert counts == [32] * 5 + [40, 50]
    left_out = torch.stack([~chosen for _, chosen in trained[:5]]).sum(0)
    measured = ~trained[5][1]
    assert torch.equal(left_out, torch.where(measured, 5, 1))


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_labels_and_numbers_can_be_tuned(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headkit.adapters.tuning.choice.choose", take_the_first)
    monkeypatch.setattr(Recipe, "num_steps", lambda *_: 4)
    images, _ = bars(40, 0)
    if task == "multilabel":
        targets: Any = [["a"] if n % 2 else ["a", "b"] if n % 3 else ["b"] for n in range(40)]
    else:
        targets = [[float(n % 7), float(n % 2)] for n in range(40)]
    head = headkit.tune(
        backbone(), (images, targets), task=task, cache=False, **{**OPTIONS, "method": "bias"}
    )
    assert head.task == task
    assert head.delta is not None
    assert (head.thresholds is not None) == (task == "multilabel")


def test_files_that_cannot_be_read_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headkit.adapters.tuning.choice.choose", take_the_first)
    monkeypatch.setattr(Recipe, "num_steps", lambda *_: 4)
    images, labels = bars(24, 0)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / label).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / label / f"{number:02}.png")
    (tmp_path / "lies" / "01.png").write_bytes(b"broken")
    head = headkit.tune(backbone(), tmp_path, cache=False, **OPTIONS)
    assert head.metrics["num_unreadable"] == 1
    assert head.metrics["num_train"] == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method is 'magic', expected auto or one of affine, bias, lora"),
        ({"rates": []}, "rates is .*, expected learning rates above 0"),
        ({"rates": [1e-3, -1]}, "expected learning rates above 0"),
        ({"rates": float("nan")}, "expected learning rates above 0"),
        ({"epochs": 0}, "epochs is 0, expected a number above 0"),
        ({"rank": 0}, "rank is 0, expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"holdout": 2}, "holdout is 2, expected a fraction between 0 and 1"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        headkit.tune("test_resnet", bars(8, 0), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hflip": 2}, "hflip is 2"),
        ({"scale": (0, 1)}, "scale is"),
        ({"ratio": (2, 1)}, "ratio is"),
        ({"color_jitter": -1}, "color_jitter is -1"),
        ({"auto_augment": "magic"}, "auto_augment is 'magic', but timm has no such policy"),
    ],
)
def test_wrong_augmentation(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        headkit.Augmentation(**options)


def test_features_cannot_be_tuned() -> None:
    features = np.random.default_rng(0).standard_normal((8, 128), np.float32)
    model = backbone()
    width = model.num_features
    with pytest.raises(headkit.DataError, match="tuning reads the images several times"):
        headkit.tune(model, (np.resize(features, (8, width)), ["a", "b"] * 4), cache=False)


def test_training_on_all_images_that_diverges_leaves_the_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headkit.adapters.tuning.choice.choose", take_the_first)
    monkeypatch.setattr(Recipe, "num_steps", lambda *_: 2)
    train = Tuner.train

    def diverge(self: Tuner, chosen: Any, candidate: Any, steps: int, name: str) -> Any:
        tuned = train(self, chosen, candidate, steps, name)
        if name.endswith("on all images"):
            next(iter(tuned.trainable.tensors.values())).data.fill_(float("nan"))
        return tuned

    monkeypatch.setattr(Tuner, "train", diverge)
    head = headkit.tune(backbone(), bars(24, 0), cache=False, **OPTIONS)
    assert head.delta is None
    assert all(np.isfinite(tensor).all() for tensor in head.tensors.values())


def test_one_image_of_each_class_is_too_few() -> None:
    images, labels = bars(2, 0)
    with pytest.raises(headkit.DataError, match="too few images per class"):
        headkit.tune(backbone(), (images, labels), cache=False, **OPTIONS)
