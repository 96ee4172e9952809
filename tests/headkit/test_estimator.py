"""``HeadClassifier`` obeys scikit-learn's own checks, on features and on images."""

import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.datasets import load_digits, load_files
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.estimator_checks import check_estimator
from timm.data import create_transform, resolve_model_data_config

import headkit
from headkit import HeadClassifier
from headkit.adapters.fitting.adamw import train
from headkit.adapters.fitting.linear.regularization_path import RegularizationPath
from tests.backbones import random_backbone
from tests.images import read_images


def _failed(estimator: HeadClassifier) -> list[str]:
    checks = check_estimator(estimator, on_skip=None, on_fail=None)
    assert len(checks) > 40
    allowed = {"passed", "skipped"}
    return [f"{c['check_name']}: {c['exception']}" for c in checks if c["status"] not in allowed]


def test_check_estimator_passes() -> None:
    assert _failed(HeadClassifier(l2=1e-2)) == []


@pytest.mark.slow
def test_check_estimator_passes_with_the_default_parameters() -> None:
    assert _failed(HeadClassifier()) == []


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    x, y = load_digits(return_X_y=True)
    return x[:600], y[:600]


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("classes", [2, 10])
def test_probabilities_are_those_of_logistic_regression(
    digits: Any, classes: int, class_weight: Any
) -> None:
    x, y = digits
    x, y = x[y < classes], y[y < classes]
    ours = HeadClassifier(l2=1e-2, class_weight=class_weight).fit(x, y)
    variance = x.var(0)
    scaled = (x - x.mean(0)) / np.sqrt(variance + variance.mean())
    weight = compute_sample_weight(class_weight, y)
    strength = 1 / (1e-2 * weight.sum())
    theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
    if classes == 2:  # scikit-learn has one row of weights for two classes, whose norm differs
        theirs = LogisticRegression(C=strength * 2, tol=1e-8, max_iter=5000)
    theirs.fit(scaled, y, sample_weight=weight)
    expected = theirs.predict_proba(scaled)
    assert np.abs(ours.predict_proba(x) - expected).max() < 5e-3
    assert (ours.predict(x) == theirs.predict(scaled)).mean() > 0.995
    assert ours.score(x, y) == pytest.approx(theirs.score(scaled, y), abs=5e-3)
    assert ours.decision_function(x).shape == theirs.decision_function(scaled).shape


def test_classifier_works_in_pipelines_and_searches(digits: Any) -> None:
    x, y = digits
    names = np.array([f"digit {label}" for label in y])
    pipeline = make_pipeline(StandardScaler(), HeadClassifier(l2=1e-2))
    search = GridSearchCV(pipeline, {"headclassifier__l2": [1.0, 1e-2]}, cv=3).fit(x, names)
    assert search.best_params_ == {"headclassifier__l2": 1e-2}
    assert search.best_score_ > 0.8
    assert set(search.predict(x)) <= set(names)
    copy = clone(pipeline)
    assert copy[-1].get_params() == pipeline[-1].get_params()
    assert is_classifier(copy[-1])
    again = pickle.loads(pickle.dumps(search.best_estimator_))  # noqa: S301
    assert np.array_equal(again.predict(x), search.predict(x))


def test_penalty_is_chosen_by_cross_validation(digits: Any) -> None:
    x, y = digits
    chosen = HeadClassifier().fit(x[:400], y[:400])
    strong = HeadClassifier(l2=10.0).fit(x[:400], y[:400])
    assert chosen.score(x[400:], y[400:]) > strong.score(x[400:], y[400:])
    assert chosen.l2_ < 10


def test_features_get_the_head_that_fit_gives_them(shapes: Path) -> None:
    found = headkit.extract(random_backbone(), shapes, workers=0)
    ours = HeadClassifier().fit(found.x, found.y)
    head = headkit.fit(random_backbone(), (found.x, found.y))
    assert head.metrics["l2"] == ours.l2_
    assert np.abs(head.tensors["fc.weight"] - ours.coef_).max() < 1e-6
    assert np.abs(head.tensors["fc.bias"] - ours.intercept_).max() < 1e-6


def test_copies_of_a_row_do_not_choose_the_penalty() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 20)), generator.integers(0, 2, 60)
    assert HeadClassifier().fit(np.repeat(x, 4, 0), np.repeat(y, 4)).l2_ > 0.5


def _write_digits(root: Path, count: int) -> Any:
    """Write digits of scikit-learn as PNG files in folders of classes; return the pixels."""
    data = load_digits()
    pixels = (data.images[:count] * 15).astype(np.uint8)
    for label in range(10):
        (root / str(label)).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(pixels, data.target, strict=False)):
        Image.fromarray(image).save(root / str(label) / f"{number:04}.png")
    return pixels


def test_cross_validation_of_a_thousand_images_is_equal_for_folders_and_arrays(
    tmp_path: Path,
) -> None:
    pixels = _write_digits(tmp_path / "digits", 1000)
    model = random_backbone(pretrained_cfg_overlay={"input_size": (3, 64, 64)})
    files = load_files(tmp_path / "digits", load_content=False, shuffle=False)
    order = [int(Path(name).stem) for name in files.filenames]
    estimator = HeadClassifier(model, l2=1e-2, workers=0, cache=tmp_path / "cache")
    from_folder = cross_val_score(estimator, files.filenames, files.target, cv=3)
    from_array = cross_val_score(estimator, pixels[order], files.target, cv=3)
    assert np.array_equal(from_folder, from_array)
    assert from_folder.mean() > 0.4  # by chance, it would be 0.1
    features = headkit.extract(model, tmp_path / "digits", workers=0, cache=tmp_path / "cache")
    from_features = cross_val_score(HeadClassifier(l2=1e-2), features.x, features.y, cv=3)
    assert np.abs(from_features - from_folder).max() < 0.01
    # Each image was computed once as a file and once as pixels, however many folds there are.
    rows = sum(_rows(shard) for shard in (tmp_path / "cache").rglob("shard-*.safetensors"))
    assert rows == 2 * len(np.unique(pixels, axis=0))


def test_cross_validation_over_levels_computes_each_image_once(tmp_path: Path) -> None:
    pixels, labels = _write_digits(tmp_path / "digits", 100), load_digits().target[:100]
    model = random_backbone(pretrained_cfg_overlay={"input_size": (3, 32, 32)})
    cache = tmp_path / "cache"
    estimator = HeadClassifier(model, workers=0, cache=cache, runtime="torch")
    search = GridSearchCV(estimator, {"levels": ["auto", ["layer2"]]}, cv=2)
    search.fit(pixels, labels)
    assert search.best_score_ > 0.4  # by chance, it would be 0.1
    read = [level.name for level in search.best_estimator_.head_.levels]
    assert read[0] == "last"
    assert len(read) > 1
    rows = sum(_rows(shard) for shard in cache.rglob("shard-*.safetensors"))
    assert rows == len(np.unique(pixels, axis=0))


def _rows(shard: Path) -> int:
    from safetensors import safe_open

    with safe_open(shard, framework="numpy") as file:
        valid: int = file.get_tensor("valid").sum().item()
        return valid


def test_predictions_do_not_depend_on_the_number_of_images(tmp_path: Path) -> None:
    """``fit`` runs many images with ONNX Runtime, and few with torch."""
    pixels = _write_digits(tmp_path / "digits", 600)
    labels = load_digits().target[:600]
    model = random_backbone(pretrained_cfg_overlay={"input_size": (3, 32, 32)})
    estimator = HeadClassifier(model, l2=1e-2, workers=0, cache=tmp_path / "cache")
    estimator.fit(pixels, labels)
    assert estimator.runtime_ == "onnxruntime"
    whole = estimator.decision_function(pixels)
    # torch multiplies few rows with another kernel than many on some processors.
    assert np.allclose(estimator.decision_function(pixels[:3]), whole[:3], rtol=0, atol=1e-4)
    few = clone(estimator).set_params(cache=tmp_path / "other").fit(pixels[:100], labels[:100])
    assert few.runtime_ == "torch"
    assert len(few.predict(pixels)) == 600
    assert few.runtime_ == "torch"


@pytest.mark.parametrize("backbone", ["module", "own"])
def test_images_in_any_form_give_the_same_head(shapes: Path, backbone: str) -> None:
    paths, labels, pixels = read_images(shapes)
    model = random_backbone()
    if backbone == "own":
        model = random_backbone("levit_128s", depth=(1, 1, 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    heads = []
    for images in (
        pixels,
        list(map(str, paths)),
        [Image.open(path) for path in paths],
        torch.from_numpy(pixels),
        pd.DataFrame({"path": list(map(str, paths))}),
        headkit.extract(model, shapes, workers=0).x,
    ):
        estimator = HeadClassifier(model, l2=1e-2, workers=0).fit(images, labels)
        assert estimator.score(images, labels) > 0.9
        assert estimator.predict_proba(images).sum(1) == pytest.approx(np.ones(24))
        heads.append(estimator.head_)
    assert heads[0].label_names == ("bright", "dark", "striped")
    for head in heads[1:]:
        for name, tensor in heads[0].tensors.items():
            assert np.array_equal(head.tensors[name], tensor)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_head_of_the_classifier_predicts_what_the_classifier_predicts(
    shapes: Path, tmp_path: Path
) -> None:
    paths, labels, pixels = read_images(shapes)
    estimator = HeadClassifier(random_backbone(), workers=0).fit(pixels, labels)
    assert estimator.head_.levels
    exported = headkit.export(
        estimator.head_.save(tmp_path / "head.safetensors"),
        tmp_path / "m.onnx",
        backbone=random_backbone(),
    )
    found = headkit.Predictor(exported.path)(paths, top_k=1)
    assert [best["label"] for (best,) in found] == estimator.predict(pixels).tolist()
    scores = [best["score"] for (best,) in found]
    assert scores == pytest.approx(estimator.predict_proba(pixels).max(1), abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"levels": "last", "l2": [1.0, 1e-2]},
        {"levels": ["layer2"]},
        {"levels": "all", "l2": [1.0, 1e-2]},
        {"levels": ["auto"], "l2": 1e-2},
        {"levels": "all", "class_weight": {"dark": 3.0}},
        {"kind": "mlp", "random_state": 3},
    ],
)
def test_head_is_the_one_that_fit_trains(
    options: dict[str, Any], shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headkit.adapters.fitting.fit_head.train", partial(train, max_epochs=3))
    _, labels, pixels = read_images(shapes)
    estimator = HeadClassifier(random_backbone(), workers=0, **options).fit(pixels, labels)
    names = {"class_weight": "class_weights", "random_state": "seed"}
    same = {names.get(name, name): value for name, value in options.items()}
    expected = headkit.fit(random_backbone(), (pixels, labels), workers=0, **same)
    assert estimator.head_.levels == expected.levels
    assert estimator.head_.kind == expected.kind
    assert sorted(estimator.head_.tensors) == sorted(expected.tensors)
    for name, tensor in expected.tensors.items():
        assert np.array_equal(estimator.head_.tensors[name], tensor), name
    for name in ("l2", "selection", "learning_rate", "epochs"):
        assert estimator.head_.metrics.get(name) == expected.metrics.get(name)


def test_nothing_is_fitted_to_measure_the_head(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CountedPath(RegularizationPath):
        def solve(self, *args: Any) -> Any:
            solved.append(1)
            return super().solve(*args)

    solved: list[int] = []
    monkeypatch.setattr("headkit.adapters.fitting.fit_linear.RegularizationPath", CountedPath)
    _, labels, pixels = read_images(shapes)
    estimator = HeadClassifier(random_backbone(), workers=0).fit(pixels, labels)
    assert len(solved) == 1
    assert estimator.head_.metrics["num_val"] == 0
    assert "accuracy" not in estimator.head_.metrics
    headkit.fit(random_backbone(), (pixels, labels), workers=0)
    assert len(solved) > 3


def test_classifier_over_levels_survives_pickle_clone_and_another_fit(
    shapes: Path, tmp_path: Path
) -> None:
    _, labels, pixels = read_images(shapes)
    estimator = HeadClassifier(random_backbone(), levels=["layer1"], workers=0)
    estimator.fit(pixels, labels)
    logits = estimator.decision_function(pixels)
    again = pickle.loads(pickle.dumps(estimator))  # noqa: S301
    assert np.array_equal(again.decision_function(pixels), logits)
    copy = clone(again)
    assert copy.get_params()["levels"] == ["layer1"]
    assert np.array_equal(copy.fit(pixels, labels).decision_function(pixels), logits)
    path = estimator.head_.save(tmp_path / "head.safetensors")
    model = headkit.attach(random_backbone(), headkit.Head.load(path))
    row = headkit.features(random_backbone(), _normalized(model, pixels), levels=["layer1"])
    with torch.no_grad():
        whole = model(_normalized(model, pixels)).numpy()
        half = headkit.classify(model, torch.cat([row["last"], row["layer1"]], 1)).numpy()
    assert np.abs(whole - logits).max() < 1e-3 * np.abs(logits).max()
    assert np.abs(half - logits).max() < 1e-3 * np.abs(logits).max()
    copy.set_params(levels="last").fit(pixels, labels)
    assert copy.head_.levels == ()
    assert not np.array_equal(copy.decision_function(pixels), logits)


def test_images_without_a_cache_may_have_features_too_many_for_memory(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, labels, pixels = read_images(shapes)
    expected = HeadClassifier(random_backbone(), workers=0).fit(pixels, labels)
    monkeypatch.setattr("headkit.adapters.features.labeled_features.MAX_IN_MEMORY", 0)
    estimator = HeadClassifier(random_backbone(), workers=0, cache=False).fit(pixels, labels)
    logits = estimator.decision_function(pixels)
    assert np.abs(logits - expected.decision_function(pixels)).max() < 1e-2 * np.abs(logits).max()


def test_backbone_that_carries_a_head_over_levels_is_not_changed(shapes: Path) -> None:
    _, labels, pixels = read_images(shapes)
    model = random_backbone()
    head = headkit.fit(model, (pixels, labels), levels="all", workers=0)
    estimator = HeadClassifier(model, workers=0, levels=["layer1"]).fit(pixels, labels)
    fresh = HeadClassifier(random_backbone(), workers=0, levels=["layer1"]).fit(pixels, labels)
    for name, tensor in fresh.head_.tensors.items():
        assert np.array_equal(estimator.head_.tensors[name], tensor), name
    kept = headkit.head_of(model, head.label_names)
    assert kept.levels == head.levels
    for name, tensor in head.tensors.items():
        assert np.array_equal(kept.tensors[name], tensor), name


def _normalized(model: Any, pixels: Any) -> torch.Tensor:
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    return torch.stack([transform(Image.fromarray(one)) for one in pixels])


def test_features_are_the_last_features_alone(shapes: Path) -> None:
    _, labels, pixels = read_images(shapes)
    model = random_backbone()
    features = headkit.extract(model, shapes, workers=0).x
    of_features = HeadClassifier(model, workers=0).fit(features, labels)
    assert of_features.head_.levels == ()
    assert np.array_equal(of_features.predict(pixels), of_features.predict(features))
    of_images = HeadClassifier(model, levels="all", workers=0).fit(pixels, labels)
    with pytest.raises(headkit.DataError, match="has features with no levels, but act1"):
        of_images.predict(features)
    of_images.set_params(levels="last").fit(pixels, labels)
    assert np.array_equal(of_images.predict(features), of_features.predict(features))
    with pytest.raises(headkit.DataError, match="has features with no levels, but act1"):
        HeadClassifier(model, levels="all").fit(features, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "mlp"}, "needs a backbone"),
        ({"levels": "all"}, "levels is 'all', which needs a backbone"),
        ({"levels": []}, "levels is empty, expected"),
        ({"l2": -1.0}, "l2 is -1, expected a positive number"),
        ({"class_weight": "even"}, "class_weight"),
    ],
)
def test_wrong_parameters_are_refused_when_the_classifier_is_fitted(
    change: dict[str, Any], message: str, digits: Any
) -> None:
    estimator = HeadClassifier().set_params(**change)
    with pytest.raises(ValueError, match=message):
        estimator.fit(*digits)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"levels": "layer9"}, headkit.ContractError, "no level 'layer9', expected some of last"),
        ({"levels": "all", "kind": "mlp"}, headkit.ContractError, "a head over levels is linear"),
        ({"l2": 0.1, "kind": "mlp"}, headkit.ContractError, "AdamW trains this head"),
        ({"levels": "all", "l2": -1.0}, ValueError, "l2 is -1, expected a positive number"),
    ],
)
def test_wrong_parameters_are_refused_before_images_are_read(
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    shapes: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headkit.extraction.extract", lambda *_, **__: pytest.fail("extracted"))
    _, labels, pixels = read_images(shapes)
    with pytest.raises(error, match=message):
        HeadClassifier(random_backbone(), **change).fit(pixels, labels)


def test_wrong_images_are_refused(shapes: Path) -> None:
    _, labels, pixels = read_images(shapes)
    estimator = HeadClassifier(random_backbone(), workers=0)
    with pytest.raises(headkit.DataError, match="pixels are uint8"):
        estimator.fit(pixels / 255, labels)
    with pytest.raises(headkit.DataError, match="24 images but 3 labels"):
        estimator.fit(pixels, labels[:3])
    with pytest.raises(headkit.DataError, match="5 features per image, but test_resnet"):
        estimator.fit(np.zeros((24, 5)), labels)
    fitted = HeadClassifier(random_backbone(), workers=0, l2=1.0).fit(pixels, labels)
    with pytest.raises(headkit.DataError, match="1 of 2 images of X cannot be read"):
        fitted.predict([pixels[0], b"no image"])
    with pytest.raises(headkit.DataError, match=r"one image \[height, width, 3\].*\[image\]"):
        fitted.predict(pixels[0])


def test_missing_scikit_learn_is_named_with_the_line_that_installs_it() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None; import headkit\n"
        "try:\n    headkit.HeadClassifier\n"
        "except headkit.DependencyMissing as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HeadClassifier needs scikit-learn>=1.6: pip install" in done.stdout
