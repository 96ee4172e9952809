"""The same images give the same head, whatever holds them."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars
import pytest
import torch
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

import headkit
from headkit.adapters.heads.head import Head
from tests.backbones import random_backbone
from tests.images import read_images


@pytest.fixture(scope="module", autouse=True)
def _hugging_face_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("hf"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield


@pytest.fixture(scope="module")
def reference(shapes: Path) -> Head:
    """The head of the folder."""
    return headkit.fit(random_backbone(), shapes, workers=0)


class Pairs(Dataset[Any]):
    """A data set of one's own, without any attribute that says what it holds."""

    def __init__(self, root: Path, transform: Callable[[Any], Any] | None = None) -> None:
        self.paths, self.labels, _ = read_images(root)
        self.transform = transform or (lambda image: image)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.open(self.paths[index])), self.labels[index]


def _arrays(root: Path) -> Any:
    _, labels, pixels = read_images(root)
    return pixels, labels


def _tensors(root: Path) -> Any:
    _, labels, pixels = read_images(root)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), np.array(labels)


def _pillow_images(root: Path) -> Any:
    paths, labels, _ = read_images(root)
    return [Image.open(path) for path in paths], labels


def _paths(root: Path) -> Any:
    paths, labels, _ = read_images(root)
    return np.array(list(map(str, paths))), pd.Series(labels, dtype="category")


def _pairs(root: Path) -> Any:
    paths, labels, _ = read_images(root)
    return list(zip(paths, labels, strict=True))


def _zipped(root: Path) -> Any:
    _, labels, pixels = read_images(root)
    return zip(pixels, labels, strict=True)


def _records(root: Path) -> Any:
    paths, labels, _ = read_images(root)
    return [
        {"image": path.read_bytes(), "label": label}
        for path, label in zip(paths, labels, strict=True)
    ]


def _subset(root: Path) -> Any:
    return Subset(ImageFolder(root), range(24))


def _concatenated(root: Path) -> Any:
    whole = ImageFolder(root)
    return ConcatDataset([Subset(whole, range(10)), Subset(whole, range(10, 24))])


def _hugging_face(root: Path) -> Any:
    return datasets.load_dataset("imagefolder", data_dir=str(root), split="train")


def _hugging_face_text(root: Path) -> Any:
    paths, labels, _ = read_images(root)
    columns = {"image": list(map(str, paths)), "label": labels}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def _data_frame(root: Path) -> Any:
    paths, labels, _ = read_images(root)
    return pd.DataFrame({"path": list(map(str, paths)), "label": labels})


FORMS: list[Callable[[Path], Any]] = [
    _arrays,
    _tensors,
    _pillow_images,
    _paths,
    _pairs,
    _zipped,
    _records,
    Pairs,
    ImageFolder,
    _subset,
    _concatenated,
    lambda root: create_dataset("", root=str(root)),
    _hugging_face,
    lambda root: _hugging_face(root).with_format("torch"),
    lambda root: datasets.DatasetDict({"train": _hugging_face(root)}),
    _hugging_face_text,
    _data_frame,
    lambda root: polars.from_pandas(_data_frame(root)),
    lambda root: {"train": _arrays(root)},
]


@pytest.mark.parametrize("form", FORMS)
def test_same_images_give_the_head_of_the_folder(
    form: Callable[[Path], Any], shapes: Path, reference: Head
) -> None:
    head = headkit.fit(random_backbone(), form(shapes), workers=0)
    assert head.label_names == ("bright", "dark", "striped")
    for name, tensor in reference.tensors.items():
        assert np.array_equal(head.tensors[name], tensor), name
    for name in ("accuracy", "num_train", "num_val", "num_duplicates"):
        assert head.metrics[name] == reference.metrics[name]


@pytest.mark.parametrize("form", [_arrays, ImageFolder, _hugging_face, Pairs])
def test_workers_decode_data_in_memory(
    form: Callable[[Path], Any], shapes: Path, reference: Head
) -> None:
    head = headkit.fit(random_backbone(), form(shapes), workers=2, cache=False)
    for name, tensor in reference.tensors.items():
        assert np.array_equal(head.tensors[name], tensor), name


def test_features_of_a_folder_are_those_of_plain_timm(shapes: Path) -> None:
    from timm.data import create_transform, resolve_model_data_config

    model = random_backbone()
    found = headkit.extract(model, shapes, workers=0)
    paths, labels, _ = read_images(shapes)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True).numpy()
    assert found.x.dtype == np.float32
    assert np.abs(found.x - expected).max() < 1e-5 * np.abs(expected).max()
    assert found.names.tolist() == list(map(str, paths))
    assert [found.label_names[y] for y in found.y] == labels
    assert (found.val, found.unreadable) == (None, ())


def test_features_give_the_head_of_their_images(shapes: Path) -> None:
    reference = headkit.fit(random_backbone(), shapes, workers=0, levels="last")
    found = headkit.extract(random_backbone(), shapes, workers=0)
    _, labels, _ = read_images(shapes)
    forms = [
        found,
        (found.x, labels),
        (found.x.astype(np.float64), np.array(labels)),
        (torch.from_numpy(found.x), labels),
        (pd.DataFrame(found.x), pd.Series(labels)),
        list(zip(found.x, labels, strict=True)),
        (found.x.tolist(), labels),
    ]
    for data in forms:
        head = headkit.fit(random_backbone(), data)
        assert head.label_names == reference.label_names
        for name, tensor in reference.tensors.items():
            assert np.array_equal(head.tensors[name], tensor), name
    codes = TensorDataset(torch.from_numpy(found.x), torch.from_numpy(found.y))
    assert headkit.fit(random_backbone(), codes).label_names == ("0", "1", "2")


def test_features_of_two_branches_give_the_head_of_their_images(shapes: Path) -> None:
    model = random_backbone("crossvit_tiny_240", depth=([1, 1, 0],))
    expected = headkit.fit(model, shapes, workers=0, levels="last")
    found = headkit.extract(model, shapes, workers=0)
    head = headkit.fit(model, (found.x, [found.label_names[y] for y in found.y]))
    for name, tensor in expected.tensors.items():
        assert np.array_equal(head.tensors[name], tensor), name


def test_features_too_many_for_memory_give_the_same_head(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = headkit.extract(random_backbone(), shapes, workers=0)
    whole = headkit.fit(random_backbone(), found)
    monkeypatch.setattr("headkit.adapters.features.labeled_features.MAX_IN_MEMORY", 0)
    monkeypatch.setattr("headkit.adapters.features.given.BLOCK", 5)
    parts = headkit.fit(random_backbone(), found)
    for name, tensor in whole.tensors.items():
        assert np.abs(parts.tensors[name] - tensor).max() < 1e-3 * np.abs(tensor).max()


def test_validation_data_may_be_in_another_form(shapes: Path) -> None:
    model = random_backbone()
    expected = headkit.fit(model, shapes, val=shapes, workers=0, levels="last")
    found = headkit.extract(model, shapes, val=shapes, workers=0)
    assert found.val is not None
    splits = {"train": _arrays(shapes), "validation": _arrays(shapes)}
    for data, val in [
        (_arrays(shapes), shapes),
        (shapes, _hugging_face(shapes)),
        (_pairs(shapes), _data_frame(shapes)),
        (found, None),
        (shapes, found.val),
        (splits, None),
    ]:
        head = headkit.fit(model, data, val=val, workers=0, levels="last")
        assert (head.metrics["num_train"], head.metrics["num_val"]) == (24, 24)
        assert head.metrics["num_val_in_train"] in (24, 0)  # an image differs from its features
        for name, tensor in expected.tensors.items():
            assert np.array_equal(head.tensors[name], tensor), name


def test_splits_of_a_mapping_are_used_and_the_test_split_is_not(
    shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = datasets.DatasetDict({"train": _hugging_face(shapes), "test": _hugging_face(shapes)})
    with caplog.at_level(logging.WARNING, "headkit"):
        head = headkit.fit(random_backbone(), splits, workers=0)
    assert head.metrics["num_train"] == head.metrics["num_val"] == 24
    assert "the test split" in caplog.text
    assert headkit.evaluate(head, splits, backbone=random_backbone()).num_images == 24
    both = {"train": _arrays(shapes), "val": _arrays(shapes)}
    with pytest.raises(headkit.DataError, match="own validation split"):
        headkit.fit(random_backbone(), both, val=_arrays(shapes))


def test_column_split_of_a_data_frame_is_honoured(shapes: Path) -> None:
    frame = _data_frame(shapes)
    frame["is_valid"] = [index % 4 == 0 for index in range(24)]
    head = headkit.fit(random_backbone(), frame, workers=0)
    assert (head.metrics["num_train"], head.metrics["num_val"]) == (18, 6)


def test_data_frame_may_hold_the_images(shapes: Path, reference: Head) -> None:
    paths, labels, pixels = read_images(shapes)
    images: list[list[Any]] = [
        [Image.open(path) for path in paths],
        [path.read_bytes() for path in paths],
        list(pixels),
        [{"bytes": path.read_bytes(), "path": None} for path in paths],
    ]
    for column in images:
        head = headkit.fit(
            random_backbone(), pd.DataFrame({"image": column, "label": labels}), workers=0
        )
        for name, tensor in reference.tensors.items():
            assert np.array_equal(head.tensors[name], tensor), name


def test_images_of_different_sizes_and_modes_are_read(shapes: Path) -> None:
    paths, labels, pixels = read_images(shapes)
    mixed: list[Any] = [
        array[: 20 + index % 20] if index % 2 else Image.fromarray(array).convert("L")
        for index, array in enumerate(pixels)
    ]
    mixed[0], mixed[1], mixed[2] = paths[0], paths[1].read_bytes(), torch.from_numpy(pixels[2])
    found = headkit.extract(random_backbone(), (mixed, labels), workers=0)
    assert found.x.shape == (24, 96)
    grey = headkit.extract(random_backbone(), (pixels[..., 0], labels), workers=0)
    expected = [Image.fromarray(array[..., 0]) for array in pixels]
    again = headkit.extract(random_backbone(), (expected, labels), workers=0)
    assert np.array_equal(grey.x, again.x)


def test_regression_and_labels_in_memory_give_the_head_of_the_table(
    shapes: Path, tmp_path: Path
) -> None:
    paths, labels, pixels = read_images(shapes)
    brightness = pixels.mean((1, 2, 3)) / 255
    several = [["a", "b"] if label == "dark" else [label] for label in labels]
    for values, text in [
        (brightness, [repr(float(value)) for value in brightness]),
        (several, ["|".join(value) for value in several]),
    ]:
        table = tmp_path / "t.csv"
        lines = [f"{path},{value}" for path, value in zip(paths, text, strict=True)]
        table.write_text("\n".join(["path,label", *lines]))
        task: Any = "regression" if values is brightness else "multilabel"
        expected = headkit.fit(random_backbone(), table, task=task, workers=0)
        frame = pd.DataFrame({"path": list(map(str, paths)), "label": list(values)})
        for data in [(pixels, values), (list(map(str, paths)), values), frame]:
            head = headkit.fit(random_backbone(), data, workers=0)
            assert (head.task, head.label_names) == (expected.task, expected.label_names)
            for name, tensor in expected.tensors.items():
                assert np.array_equal(head.tensors[name], tensor), name


def test_unreadable_images_in_memory_are_counted_and_named(
    shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths, labels, _ = read_images(shapes)
    content = [path.read_bytes() for path in paths]
    content[3] = b"no image"
    with caplog.at_level(logging.WARNING, "headkit"):
        head = headkit.fit(random_backbone(), (content, labels), workers=0)
    assert head.metrics["num_unreadable"] == 1
    assert "image 3 (" in caplog.text


class Failing(Pairs):
    """A data set that cannot read one of its items the second time."""

    labels: list[str]
    targets: list[str]

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.targets = self.labels

    def __getitem__(self, index: int) -> Any:
        if index == 5:
            raise KeyError("no such item")
        return super().__getitem__(index)


def test_item_that_a_data_set_cannot_read_is_counted(
    shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "headkit"):
        head = headkit.fit(random_backbone(), Failing(shapes), workers=0)
    assert head.metrics["num_unreadable"] == 1
    assert "image 5 ('no such item')" in caplog.text


def test_labels_of_folders_of_torchvision_are_read_without_decoding(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headkit.adapters.data.open import open_data

    data, read = ImageFolder(shapes), set()
    plain = ImageFolder.__getitem__

    def watched(self: Any, index: int) -> Any:
        read.add(index)
        return plain(self, index)

    monkeypatch.setattr(ImageFolder, "__getitem__", watched)
    train, _ = open_data(data)
    assert read == {0}
    assert train.targets is not None
    assert train.targets.tolist() == data.targets


SPAWNED = """
import multiprocessing, pickle, sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np

import headkit
from headkit.adapters.data.open import open_data
from tests.backbones import random_backbone
from tests.images import read_images

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    _, labels, pixels = read_images(Path(sys.argv[1]))
    train, _ = open_data((pixels, labels))
    assert len(ForkingPickler.dumps(train.reader)) < 2000 < pixels.nbytes
    again = pickle.loads(pickle.dumps(train.reader))
    assert np.array_equal(again[5][0], pixels[5])
    found = headkit.extract(random_backbone(), (pixels, labels), workers=2, cache=False)
    np.save(sys.argv[2], found.x)
"""


def test_spawned_workers_share_one_copy_of_an_array(shapes: Path, tmp_path: Path) -> None:
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, script, shapes, tmp_path / "x.npy"],
        env={"PYTHONPATH": str(root), "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = headkit.extract(random_backbone(), _arrays(shapes), workers=0)
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected.x)


class _Unreadable(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return 1 / 0


WRONG: list[tuple[Callable[[Path], Any], str]] = [
    (lambda _: 3, "data is of type int, expected a folder"),
    (lambda _: None, "data is of type NoneType, expected"),
    (lambda root: _arrays(root)[0], r"an array \[24, 40, 48, 3\] without labels"),
    (lambda root: (_arrays(root)[0], ["a", "b"]), "24 images but 2 labels"),
    (lambda root: (_arrays(root)[0], None), "labels of .* are of type NoneType"),
    (lambda root: (_arrays(root)[0] / 255, _arrays(root)[1]), "float64 .* pixels are uint8"),
    (lambda root: (_arrays(root)[0].astype(int), _arrays(root)[1]), r"\.astype\('uint8'\)"),
    (lambda root: (_arrays(root)[0], ["a"] * 24), "one class, a"),
    (lambda root: (_arrays(root)[0], [None, "a"] * 12), "image 0 .* has no label"),
    (lambda root: (_arrays(root)[0], ["a", 1] * 12), "of type int, str"),
    (lambda root: (_arrays(root)[0], [0.0, 1.0] * 12), "set the task to regression"),
    (lambda root: (np.zeros((24, 5)), _arrays(root)[1]), "5 features per image, but test_resnet"),
    (lambda root: (np.full((24, 96), np.nan), _arrays(root)[1]), "image 0 .* NaN"),
    (lambda root: ([root / "no.png"] * 24, _arrays(root)[1]), "do not exist: .*current folder"),
    (lambda root: [root / "dark" / "0.png"], "item 0 of the list is of type .*pairs"),
    (lambda root: [(root / "dark" / "0.png", "a", "b")], "item 0 of the list is 3 values"),
    (lambda _: [], "the list has no images"),
    (lambda _: ([None, None], ["a", "b"]), "image 0 of .* is of type NoneType"),
    (lambda root: {"a": _arrays(root)}, "expected the splits train and val"),
    (lambda root: ImageFolder(root, transform=ToTensor()), "float32 .* remove the transforms"),
    (lambda root: torch.utils.data.DataLoader(ImageFolder(root)), "a DataLoader, .*data.dataset"),
    (lambda _: pd.DataFrame({"x": [1.0]}), "the DataFrame has the columns x"),
    (lambda _: pd.DataFrame({"path": [], "label": []}), "the DataFrame has no rows"),
    (
        lambda _: datasets.Dataset.from_dict({"text": ["a"], "label": [0]}),
        "has the columns text, label",
    ),
    (
        lambda root: datasets.load_dataset(
            "imagefolder", data_dir=str(root), split="train", streaming=True
        ),
        "streamed",
    ),
    (lambda root: root.iterdir, "data is of type .*method"),
    (lambda root: (_arrays(root)[0][0], ["a", "b"] * 20), r"one image .*\[image\]"),
    (lambda _: _Unreadable(), "item 0 of .*ZeroDivisionError"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_wrong_data_are_refused_with_the_way_out(
    make: Callable[[Path], Any], message: str, shapes: Path
) -> None:
    with pytest.raises(headkit.DataError, match=message):
        headkit.fit(random_backbone(), make(shapes), workers=0)


def test_exported_model_is_measured_on_data_in_memory(shapes: Path, tmp_path: Path) -> None:
    head = headkit.fit(random_backbone(), shapes, workers=0)
    exported = headkit.export(head, tmp_path / "m.onnx", backbone=random_backbone())
    expected = headkit.evaluate(exported.path, shapes)
    for data in (_arrays(shapes), ImageFolder(shapes), _hugging_face(shapes), _data_frame(shapes)):
        found = headkit.evaluate(exported.path, data)
        assert found.metrics["log_loss"] == pytest.approx(expected.metrics["log_loss"])
        assert found.num_images == 24
    found = headkit.evaluate(exported.path, Failing(shapes))
    assert (found.num_images, found.metrics["num_unreadable"]) == (23, 1)
    with pytest.raises(headkit.DataError, match="has features, but an exported model"):
        headkit.evaluate(exported.path, headkit.extract(random_backbone(), shapes, workers=0))


def test_head_is_measured_on_features_as_on_their_images(shapes: Path) -> None:
    model = random_backbone()
    head = headkit.fit(model, shapes, workers=0, levels="last")
    features = headkit.extract(model, shapes, val=shapes, workers=0)
    expected = headkit.evaluate(head, shapes, backbone=model, workers=0).metrics
    for data in (features, (features.x, [features.label_names[y] for y in features.y])):
        assert headkit.evaluate(head, data, backbone=model).metrics == expected
    assert headkit.evaluate(head, features, split="train", backbone=model).metrics == expected


@pytest.mark.parametrize("backbone", [None, 3, ["test_resnet"]])
def test_features_without_a_backbone_are_refused(backbone: Any) -> None:
    data = np.random.default_rng(0).normal(size=(24, 96)), ["a", "b"] * 12
    for function in (headkit.fit, headkit.extract):
        with pytest.raises(headkit.ContractError, match="expected the name of a timm architecture"):
            function(backbone, data)


def test_random_crops_of_features_are_refused(shapes: Path) -> None:
    found = headkit.extract(random_backbone(), shapes, workers=0)
    with pytest.raises(headkit.DataError, match="views need images"):
        headkit.fit(random_backbone(), found, views=2)
