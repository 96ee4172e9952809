import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from timm.data import create_dataset, create_transform

import headkit
from headkit.adapters.fitting.linear.solve import VAR_SMOOTHINGS
from tests.backbones import random_backbone
from tests.images import write_shapes


def standardized(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    variance = x.var(0)
    return np.asarray((x - x.mean(0)) / np.sqrt(variance + VAR_SMOOTHINGS[0] * variance.mean()))


def test_fitted_head_equals_that_of_scikit_learn(small: Any, shapes: Path) -> None:
    head = headkit.fit(small, shapes, val=shapes, l2=1e-2, workers=0)
    assert head.label_names == ("bright", "dark", "striped")
    transform = create_transform(**head.pretrained_cfg, is_training=False)
    images = create_dataset("", root=str(shapes), transform=transform)
    pixels = torch.stack([image for image, _ in images])
    targets = np.array([target for _, target in images])
    with torch.inference_mode():
        plain = random_backbone()
        x = plain.forward_head(plain.forward_features(pixels), pre_logits=True).numpy()
        found = small(pixels).softmax(1).numpy()
    x = standardized(x)
    reference = LogisticRegression(C=1 / (1e-2 * len(x)), tol=1e-8, max_iter=5000).fit(x, targets)
    assert np.abs(found - reference.predict_proba(x)).max() < 1e-3
    accuracy = (found.argmax(1) == targets).mean()
    assert head.temperature == 1  # no image is mistaken
    log_loss = -np.log(found[np.arange(len(x)), targets]).mean()
    assert head.metrics["accuracy"] == pytest.approx(accuracy)
    assert head.metrics["log_loss"] == pytest.approx(log_loss, abs=1e-5)


def test_same_seed_gives_the_same_head(shapes: Path) -> None:
    first, second = (
        headkit.fit(random_backbone(), shapes, seed=3, workers=0).with_changes(created="")
        for _ in range(2)
    )
    assert first.digest == second.digest
    assert first.metrics["num_val"] == first.metrics["num_train"] == 24


def test_train_and_val_folders_are_used(tmp_path: Path) -> None:
    write_shapes(tmp_path / "train")
    write_shapes(tmp_path / "val", images=2)
    head = headkit.fit(random_backbone(), tmp_path, workers=0)
    assert (head.metrics["num_train"], head.metrics["num_val"]) == (24, 6)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_reported_skipped_and_counted(
    folder: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "dark" / "3.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING, "headkit"):
        head = headkit.fit(random_backbone(), folder, workers=workers)
    assert head.metrics["num_unreadable"] == 1
    assert head.metrics["num_train"] == head.metrics["num_val"] == 23
    assert "skipped 1 of 24 images" in caplog.text
    assert str(Path("dark") / "3.png") in caplog.text


def test_image_of_12_bits_is_reported_skipped_and_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deep = np.full((8, 8), 3_000, np.uint16)  # as a camera of 12 bits writes it
    Image.fromarray(deep).save(folder / "dark" / "3.png")
    with caplog.at_level(logging.WARNING, "headkit"):
        head = headkit.fit(random_backbone(), folder, workers=0)
    assert head.metrics["num_unreadable"] == 1
    assert "3.png (its largest value is 3,000 of 65,535" in caplog.text


def test_16_bit_images_train_the_same_head_as_their_upper_8_bits(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for label, low in {"bright": 40_000, "dark": 0}.items():
        for folder in ("deep", "flat"):
            (tmp_path / folder / label).mkdir(parents=True)
        for number in range(10):
            values = generator.integers(low, low + 25_000, (40, 40)).astype(np.uint16)
            name = f"{label}/{number}.png"
            Image.fromarray(values).save(tmp_path / "deep" / name)
            Image.fromarray((values >> 8).astype(np.uint8)).save(tmp_path / "flat" / name)
    heads = [
        headkit.fit(random_backbone(), tmp_path / folder, workers=0, cache=False)
        for folder in ("deep", "flat")
    ]
    assert heads[0].tensors.keys() == heads[1].tensors.keys()
    for name, tensor in heads[0].tensors.items():
        assert tensor.tobytes() == heads[1].tensors[name].tobytes()
    assert heads[0].metrics["num_unreadable"] == 0


def test_too_many_unreadable_images_are_an_error(folder: Path) -> None:
    for index in range(2):
        path = folder / "dark" / f"{index}.png"
        path.write_bytes(path.read_bytes()[:200])  # truncated
    with pytest.raises(
        headkit.DataError, match=r"2 of 24 images .* expected at most 5% .*dark/0\.png"
    ):
        headkit.fit(random_backbone(), folder, workers=0)
    assert headkit.fit(random_backbone(), folder, workers=0, max_unreadable=0.1)


def test_class_whose_images_are_all_unreadable_is_reported(folder: Path) -> None:
    for path in (folder / "dark").iterdir():
        path.write_bytes(b"")
    with pytest.raises(headkit.DataError, match="no image of class dark could be read"):
        headkit.fit(random_backbone(), folder, workers=0, max_unreadable=0.5)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("dla46x_c", "own"),  # a convolution
        ("deit_tiny_distilled_patch16_224", "own"),  # two modules, a branch each
        ("crossvit_9_240", "own"),  # two modules, branches of different width
        ("levit_128s", "linear"),  # two modules with BatchNorm on one branch
        ("repvit_m0_9", "linear"),
        ("caformer_s18", "linear"),
    ],
)
def test_one_solution_is_spread_over_several_modules(
    architecture: str, kind: str, folder: Path
) -> None:
    for path in list(folder.rglob("[4-7].png")):
        path.unlink()
    model = random_backbone(architecture)
    head = headkit.fit(model, folder, val=folder, l2=0.1, workers=0)
    assert head.kind == kind
    data = create_dataset(
        "", root=str(folder), transform=create_transform(**head.pretrained_cfg, is_training=False)
    )
    pixels = torch.stack([image for image, _ in data])
    targets = torch.tensor([target for _, target in data])
    with torch.no_grad():
        logits, entered = model(pixels), headkit.features(model, pixels)
        branches = [entered] if isinstance(entered, torch.Tensor) else list(entered)
        x = torch.cat([branch.flatten(1) for branch in branches], 1).numpy()
    accuracy = (logits.argmax(1) == targets).double().mean().item()
    assert head.metrics["accuracy"] == pytest.approx(accuracy)
    x = standardized(x.astype(np.float64))
    reference = LogisticRegression(C=1 / (0.1 * len(x)), tol=1e-8, max_iter=5000).fit(x, targets)
    found = logits.softmax(1).numpy()
    assert np.abs(found - reference.predict_proba(x)).max() < 1e-2


@pytest.mark.skipif(not timm.is_model("efficientvim_m1"), reason="timm is older than EfficientViM")
def test_architecture_whose_logits_are_more_than_a_mean_is_trained(shapes: Path) -> None:
    model = random_backbone("efficientvim_m1")
    head = headkit.fit(model, shapes, val=shapes, workers=0, levels="last")
    assert head.kind == "own"
    assert head.metrics["accuracy"] > 0.9
    assert head.metrics["epochs"] >= 1
    over = headkit.fit(model, shapes, val=shapes, workers=0)
    assert (over.kind, over.metrics["accuracy"]) == ("linear", 1)
    assert next(level.name for level in over.levels) == "last"


@pytest.mark.parametrize("kind", ["mlp", "cosine"])
def test_other_kinds_are_trained_and_reproduced(kind: Any, shapes: Path) -> None:
    model = random_backbone()
    first = headkit.fit(model, shapes, kind=kind, workers=0)
    again = headkit.fit(random_backbone(), shapes, kind=kind, workers=0)
    assert first.kind == kind
    assert first.metrics["accuracy"] == 1
    for name, tensor in first.tensors.items():
        assert np.array_equal(tensor, again.tensors[name])
    other = headkit.fit(random_backbone(), shapes, kind=kind, workers=0, seed=1)
    assert any(not np.array_equal(t, other.tensors[n]) for n, t in first.tensors.items())


def _table(shapes: Path, path: Path, lines: list[tuple[str, str]]) -> Path:
    rows = "".join(f"{shapes / image},{label}\n" for image, label in lines)
    path.write_text("path,label\n" + rows)
    return path


def test_multilabel_csv_is_fitted_exported_and_predicted(shapes: Path, tmp_path: Path) -> None:
    labels = {"bright": "light|plain", "dark": "plain", "striped": "light"}
    lines = [(f"{name}/{n}.png", labels[name]) for n in range(8) for name in labels]
    head = headkit.fit(random_backbone(), _table(shapes, tmp_path / "t.csv", lines), workers=0)
    assert (head.task, head.label_names) == ("multilabel", ("light", "plain"))
    assert head.metrics["mean_average_precision"] == 1
    path = head.save(tmp_path / "head.safetensors")
    exported = headkit.export(path, tmp_path / "m.onnx", backbone=random_backbone())
    found = headkit.Predictor(exported.path)(shapes / "bright" / "0.png")
    assert all(prediction["score"] > 0.5 for prediction in found[0])
    assert head.thresholds is not None
    assert len(head.thresholds) == 2
    assert all(prediction["present"] for prediction in found[0])
    assert not any(
        one["present"]
        for one in headkit.Predictor(exported.path)(shapes / "dark" / "0.png")[0]
        if one["label"] == "light"
    )


def test_brightness_is_learned_as_a_number(shapes: Path, tmp_path: Path) -> None:
    lines = []
    for path in sorted(shapes.rglob("*.png")):
        mean = np.asarray(Image.open(path)).mean() / 255
        lines.append((str(path.relative_to(shapes)), f"{mean:.5f}"))
    table = _table(shapes, tmp_path / "t.csv", lines)
    head = headkit.fit(random_backbone(), table, task="regression", workers=0)
    assert (head.task, head.num_classes, head.label_names) == ("regression", 1, ("label",))
    assert head.metrics["r2"] > 0.9
    assert head.temperature == 1
    with pytest.raises(headkit.DataError, match="class_weights needs classes"):
        headkit.fit(
            random_backbone(), table, task="regression", class_weights="balanced", workers=0
        )


def test_random_crops_train_the_head_but_do_not_validate_it(shapes: Path) -> None:
    one = headkit.fit(random_backbone(), shapes, workers=0, l2=1e-2)
    several = headkit.fit(random_backbone(), shapes, workers=0, l2=1e-2, views=3)
    for name in ("num_train", "num_val"):
        assert one.metrics[name] == several.metrics[name]
    assert any(not np.array_equal(t, several.tensors[n]) for n, t in one.tensors.items())


def test_features_too_many_for_memory_give_the_same_head(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = headkit.fit(random_backbone(), shapes, workers=0, views=2)
    monkeypatch.setattr("headkit.adapters.features.labeled_features.MAX_IN_MEMORY", 0)
    model = random_backbone()
    parts = headkit.fit(model, shapes, workers=0, views=2, batch_size=1)
    assert parts.metrics["l2"] == whole.metrics["l2"]
    for name, tensor in whole.tensors.items():
        assert np.abs(parts.tensors[name] - tensor).max() < 1e-3 * np.abs(tensor).max()
    mlp = headkit.fit(model, shapes, workers=0, kind="mlp")
    assert mlp.metrics["accuracy"] == 1


def test_images_that_vanish_between_crops_are_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headkit.adapters.features.extract import extract

    def meddled(*args: Any, **options: Any) -> Any:
        found = extract(*args, **options)
        (folder / "dark" / "3.png").unlink(missing_ok=True)
        return found

    monkeypatch.setattr("headkit.extraction.extract", meddled)
    with pytest.raises(headkit.DataError, match=r"1 images could be read for some crops .*3\.png"):
        headkit.fit(random_backbone(), folder, workers=0, views=2)


def test_class_weights_by_name_shift_the_predictions(shapes: Path) -> None:
    biases = []
    for weight in (1.0, 50.0):
        model = random_backbone()
        headkit.fit(model, shapes, l2=10.0, workers=0, class_weights={"dark": weight})
        with torch.no_grad():
            biases.append(model.fc.bias[1].item())
    assert biases[1] > biases[0] + 0.5
    with pytest.raises(
        headkit.DataError, match=r"class_weights has labels that .* does not have: green"
    ):
        headkit.fit(random_backbone(), shapes, workers=0, class_weights={"green": 2})


def test_no_cache_leaves_no_files(shapes: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HEADKIT_CACHE", str(tmp_path / "cache"))
    headkit.fit(random_backbone(), shapes, workers=0, cache=False)
    assert not (tmp_path / "cache").exists()
    headkit.fit(random_backbone(), shapes, workers=0)
    assert list((tmp_path / "cache" / "features").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holdout": 1.5}, "holdout is 1.5, expected a fraction"),
        ({"l2": [1e-3, 0]}, "l2 is 0, expected a positive"),
        ({"views": 0}, "views is 0"),
        ({"thresholds": 2.0}, "thresholds is 2.0, expected 'f1' or a precision"),
        ({"thresholds": 0.9}, "thresholds is 0.9, but the task is multiclass.*--thresholds"),
        ({"thresholds": "f1"}, "thresholds is 'f1', but the task is multiclass"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"task": "segmentation"}, "task is 'segmentation'"),
        ({"class_weights": "even"}, "class_weights is 'even'"),
        ({"class_weights": {"dark": -1.0}}, "the weight -1.0 for dark, expected a positive"),
    ],
)
def test_options_are_checked_before_extraction(
    options: dict[str, Any], message: str, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headkit.extraction.extract", lambda *_, **__: pytest.fail("extracted"))
    with pytest.raises(ValueError, match=message):
        headkit.fit(random_backbone(), shapes, **options)


def test_l2_is_refused_for_a_head_that_adamw_trains(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headkit.extraction.extract", lambda *_, **__: pytest.fail("extracted"))
    with pytest.raises(headkit.ContractError, match="AdamW trains this head of the kind mlp"):
        headkit.fit(random_backbone(), shapes, l2=0.1, kind="mlp")


def test_arguments_that_load_a_backbone_are_refused_for_a_model(
    shapes: Path, small_weights: Path
) -> None:
    for options in ({"weights": small_weights}, {"remap": True}, {"pretrained": False}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} cannot be used .* a model"):
            headkit.fit(random_backbone(), shapes, workers=0, **options)


def test_levels_are_read_where_they_help(shapes: Path) -> None:
    head = headkit.fit(random_backbone(), shapes, workers=0, levels="all")
    assert [level.name for level in head.levels] == [
        *("last", "act1", "layer1", "layer2", "layer3")
    ]
    model = random_backbone()
    named = headkit.fit(model, shapes, workers=0, levels=["layer2"])
    assert [level.name for level in named.levels] == ["last", "layer2"]
    transform = create_transform(**named.pretrained_cfg, is_training=False)
    pixels = torch.stack(
        [one for one, _ in create_dataset("", root=str(shapes), transform=transform)]
    )
    plain = random_backbone()
    levels = headkit.features(plain, pixels, levels=["layer2"])
    row = torch.cat([levels["last"], levels["layer2"]], 1).numpy()
    expected = row @ named.tensors["level_head.weight"].T + named.tensors["level_head.bias"]
    with torch.no_grad():
        np.testing.assert_allclose(model(pixels).numpy(), expected, atol=1e-4)
    with pytest.raises(headkit.ContractError, match="no level 'layer9', expected some"):
        headkit.fit(random_backbone(), shapes, workers=0, levels=["layer9"])
    with pytest.raises(headkit.ContractError, match="a head over levels is linear"):
        headkit.fit(random_backbone(), shapes, workers=0, levels="all", kind="mlp")


def test_a_model_that_carries_a_head_over_levels_is_fitted_again(shapes: Path) -> None:
    model = random_backbone()
    first = headkit.fit(model, shapes, workers=0)
    assert first.levels
    again = headkit.fit(model, shapes, workers=0)
    last = headkit.fit(model, shapes, workers=0, levels="last")
    for name, tensor in first.tensors.items():
        assert np.array_equal(again.tensors[name], tensor)
    fresh = headkit.fit(random_backbone(), shapes, workers=0, levels="last")
    assert np.array_equal(last.tensors["fc.weight"], fresh.tensors["fc.weight"])
