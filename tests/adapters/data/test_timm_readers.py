import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headkit.adapters.data.open import ImageDataset, count, open_data
from headkit.adapters.data.summary import describe_data
from headkit.adapters.errors import DataError, DependencyMissing
from headkit.adapters.images.open import open_image

from .listings import open_train, write_images


def test_reader_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headkit.adapters.data.timm_readers.find_spec", lambda _: None)
    with pytest.raises(DependencyMissing, match="reading wds/shards needs webdataset: pip install"):
        open_data("wds/shards@train")
    with pytest.raises(DependencyMissing, match="pip install tensorflow-datasets"):
        open_data("tfds/mnist")
    with pytest.raises(DataError, match="multiclass; multilabel needs a CSV"):
        open_data("hfds/beans", task="multilabel")


def test_existing_folder_named_like_a_reader_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "wds" / "shards", "cat/1.jpg", "dog/1.jpg")
    monkeypatch.chdir(tmp_path)
    assert open_train(Path("wds/shards")).label_names == ("cat", "dog")


@pytest.fixture
def tfds(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], dict[str, int]]:
    """Replace TensorFlow Datasets; return the classes of each name and split."""
    known: dict[tuple[str, str], dict[str, int]] = {}

    def create(name: str, split: str, class_map: dict[int, int] | None = None) -> Any:
        classes = known[name, split]
        targets = [np.int64((class_map or {}).get(i, i)) for i in classes.values()]
        return Stream([(Image.new("RGB", (4, 4)), target) for target in targets], classes)

    monkeypatch.setattr("headkit.adapters.data.timm_readers.find_spec", lambda _: True)
    monkeypatch.setattr("headkit.adapters.data.timm_readers.create_dataset", create)
    return known


class Stream(list[Any]):
    def __init__(self, samples: Sequence[Any], classes: dict[str, int]) -> None:
        super().__init__(samples)
        self.reader = SimpleNamespace(class_to_idx=classes)


def test_stream_keeps_its_classes_and_validation_is_matched_by_name(
    tfds: dict[tuple[str, str], dict[str, int]], tmp_path: Path
) -> None:
    tfds["tfds/pets", "train"] = {"cat": 0, "emu": 2, "dog": 1}
    tfds["tfds/pets", "validation"] = {"emu": 0, "cat": 1}
    tfds["tfds/pets", "test[:5]"] = {"cat": 0, "fox": 1}
    tfds["tfds/numbers", "train"] = {}
    train, val = open_data("tfds/pets", "tfds/pets")
    assert train.label_names == ("cat", "dog", "emu")
    assert (train.paths, train.targets, train.reader) == (None, None, None)
    assert train.name == "tfds/pets (split train)"
    assert count(train) == 3
    assert val is not None
    assert val.label_names == train.label_names
    assert [int(target) for _, target in val.stream] == [2, 0]
    with pytest.raises(DataError, match=r"tfds/pets \(split test\[:5\]\) has classes that .*: fox"):
        open_data("tfds/pets", "tfds/pets@test[:5]")
    with pytest.raises(DataError, match="has no class names, so the classes of training and"):
        open_data("tfds/pets", "tfds/numbers@train")
    numbers, _ = open_data("tfds/numbers")
    assert numbers.label_names == ()
    summary = describe_data("tfds/pets", "tfds/pets")
    assert {split: one.images for split, one in summary.splits.items()} == {"train": 3, "val": 2}
    assert "train            3        -  tfds/pets (split train)" in str(summary)
    folder = write_images(tmp_path, "cat/1.jpg", "emu/1.jpg")
    _, val = open_data("tfds/pets", folder)
    assert val is not None
    assert val.targets is not None
    assert val.targets.tolist() == [0, 2]


def test_an_exception_of_a_reader_becomes_a_data_error(
    tfds: dict[tuple[str, str], dict[str, int]],
) -> None:
    with pytest.raises(DataError, match=r"timm cannot open tfds/pets \(split nosuch\): \('tfds/pe"):
        open_data("tfds/pets@nosuch")


def write_shard(path: Path, targets: Sequence[object], extension: str = "png") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, target in enumerate(targets):
            content = io.BytesIO()
            Image.new("RGB", (8, 8), (number, 0, 0)).save(content, Image.EXTENSION[f".{extension}"])
            files = {extension: content.getvalue(), "cls": str(target).encode()}
            for suffix, data in files.items():
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of training images and one of validation images in a WebDataset."""
    pytest.importorskip("webdataset")
    Image.init()
    root = tmp_path / "my #1 shards@home"
    write_shard(root / "train-0000.tar", [0, 1, 2, 0])
    write_shard(root / "train-0001.tar", [1, 2], "jpeg")
    write_shard(root / "val-0000.tar", [2, 1])
    splits = {
        "train": (["train-0000.tar", "train-0001.tar"], [4, 2]),
        "validation": (["val-0000.tar"], [2]),
        "gone": (["gone-0000.tar"], [2]),
    }
    info = {
        name: {
            "name": name,
            "filenames": files,
            "shard_lengths": lengths,
            "num_samples": sum(lengths),
        }
        for name, (files, lengths) in splits.items()
    }
    (root / "_info.json").write_text(json.dumps({"splits": info}))
    return root


def test_webdataset_is_streamed(shards: Path) -> None:
    (shards / "classes.txt").write_text("cat\ndog\nemu\n")
    train, val = open_data(f"wds/{shards}", f"wds/{shards}")
    assert train.label_names == ("cat", "dog", "emu")
    assert count(train) == 6
    read = list(train.stream)
    assert [target for _, target in read] == [0, 1, 2, 0, 1, 2]
    assert [open_image(image).size for image, _ in read] == [(8, 8)] * 6
    assert val is not None
    assert [target for _, target in val.stream] == [2, 1]


def test_images_of_shards_become_pixels_as_those_of_files_do(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    values = np.random.default_rng(0).integers(0, 65536, (12, 20)).astype(np.uint16)
    rgba = (values[:, :20, None] >> np.arange(4, dtype=np.uint16)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "train").mkdir()
    Image.fromarray(values).save(tmp_path / "train" / "0.png")
    Image.fromarray(rgba[..., :3].copy()).save(tmp_path / "train" / "1.jpg", exif=exif)
    Image.fromarray(rgba).save(tmp_path / "train" / "2.png", exif=exif)
    with tarfile.open(tmp_path / "train-0000.tar", "w") as archive:
        for number, path in enumerate(sorted((tmp_path / "train").iterdir())):
            archive.add(path, f"{number}{path.suffix}")
            label = tarfile.TarInfo(f"{number}.cls")
            label.size = 1
            archive.addfile(label, io.BytesIO(b"01"[number % 2 :]))
    data, _ = open_data(f"wds/{tmp_path}@train-{{0000..0000}}.tar")
    streamed = [np.asarray(open_image(image)) for image, _ in data.stream]
    for pixels, path in zip(streamed, sorted((tmp_path / "train").iterdir()), strict=True):
        assert np.array_equal(pixels, np.asarray(open_image(path)))
    assert streamed[0].std() > 50


def test_webdataset_shards_are_shared_out_to_workers(shards: Path) -> None:
    from torch.utils.data import DataLoader

    train, _ = open_data(f"wds/{shards}")
    loader: Any = DataLoader(train.stream, batch_size=None, num_workers=2, collate_fn=list)
    assert sorted(target for _, target in loader) == [0, 0, 1, 1, 2, 2]


def test_webdataset_needs_no_description(shards: Path) -> None:
    (shards / "_info.json").unlink()
    with pytest.raises(DataError, match=r"split train not found .* expected the split in .*_info"):
        open_data(f"wds/{shards}")
    shutil.move(shards, shards.with_name("plain"))
    dataset, _ = open_data(f"wds/{shards.with_name('plain')}@train-{{0000..0001}}.tar")
    assert dataset.label_names == ()
    assert count(dataset) is None
    assert len(list(dataset.stream)) == 6


def test_webdataset_class_names_may_be_in_its_description(shards: Path) -> None:
    info = json.loads((shards / "_info.json").read_text())
    (shards / "_info.json").write_text(json.dumps({**info, "label_names": ["cat", "dog", "emu"]}))
    train, _ = open_data(f"wds/{shards}@train")
    assert train.label_names == ("cat", "dog", "emu")
    (shards / "_info.json").write_text(json.dumps({**info, "label_names": ["cat", "dog"]}))
    with pytest.raises(DataError, match="has the class index 2, but only 2 class names"):
        open_data(f"wds/{shards}@validation")


def test_webdataset_that_timm_would_read_as_empty_is_refused(shards: Path) -> None:
    with pytest.raises(
        DataError, match=r"shards are missing in .*my #1 shards@home: gone-0000\.tar"
    ):
        open_data(f"wds/{shards}@gone")
    write_shard(shards / "val-0000.tar", ["cat", "dog"])
    with pytest.raises(DataError, match=r"no image of .* can be read; .* class index in KEY.cls"):
        open_data(f"wds/{shards}@validation")


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the library ``datasets``; it works offline and writes only to the test's folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder that Hugging Face's imagefolder reads."""
    root = tmp_path / "pictures"
    for split, images in (("train", 3), ("validation", 1)):
        for name in ("cat", "c10", "c9"):
            (root / split / name).mkdir(parents=True)
            for number in range(images):
                Image.new("RGB", (8, 8)).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def parquet(hugging_face: Any, pictures: Path, tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes nine images with columns of labels for ``hfds/``."""
    images = [str(path) for path in sorted(pictures.glob("train/*/*"))]

    def write(features: dict[str, Any], image: str = "image", **columns: list[Any]) -> str:
        table = {image: images, **columns}
        features = {image: hugging_face.Image(), **features}
        data_set = hugging_face.Dataset.from_dict(table, hugging_face.Features(features))
        root = tmp_path / f"parquet{len(list(tmp_path.iterdir()))}"
        root.mkdir()
        data_set.to_parquet(root / "train.parquet")
        return f"hfds/{root}"

    return write


def targets_of(dataset: ImageDataset) -> list[int]:
    return [dataset.reader[number][1] for number in range(len(dataset.reader))]


def test_hugging_face_folder_is_read(hugging_face: Any, pictures: Path) -> None:
    train, val = open_data(f"hfds/{pictures}", f"hfds/{pictures}")
    assert set(train.label_names) == {"cat", "c10", "c9"}
    assert count(train) == 9
    file, target = train.reader[8]
    assert open_image(file).size == (8, 8)
    assert train.label_names[target] in train.reader.filename(8)
    assert val is not None
    assert targets_of(val) == [0, 1, 2]
    with pytest.raises(DataError, match=r'split nosuch\): Unknown split "nosuch"'):
        open_data(f"hfds/{pictures}@nosuch")
    with pytest.raises(DataError, match=r"timm cannot open hfds/.*none \(split train\): Couldn't"):
        open_data(f"hfds/{pictures / 'none'}")


def test_hugging_face_data_set_is_streamed(hugging_face: Any, pictures: Path) -> None:
    dataset, _ = open_data(f"hfids/{pictures}")
    assert set(dataset.label_names) == {"cat", "c10", "c9"}
    assert count(dataset) is None
    assert sorted(target for _, target in dataset.stream) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with pytest.raises(DataError, match=r"split nosuch\): Bad split: nosuch"):
        open_data(f"hfids/{pictures}@nosuch")


def test_only_column_of_each_kind_is_found(hugging_face: Any, parquet: Callable[..., str]) -> None:
    classes = hugging_face.ClassLabel(names=["a", "b", "c"])
    name = parquet({"fine": classes}, image="img", fine=[2, 1, 0] * 3)
    dataset, _ = open_data(name)
    assert dataset.label_names == ("a", "b", "c")
    assert targets_of(dataset) == [2, 1, 0] * 3
    streamed, _ = open_data(name.replace("hfds", "hfids"))
    assert [target for _, target in streamed.stream] == [2, 1, 0] * 3
    assert count(streamed) == 9
    columns = {"fine": [0] * 9, "coarse": [0] * 9}
    ambiguous = parquet({"fine": classes, "coarse": classes}, **columns)
    with pytest.raises(DataError, match="has the columns image, fine, coarse; expected image and"):
        open_data(ambiguous)


def test_classes_of_training_are_those_with_an_image(
    hugging_face: Any, parquet: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    classes = hugging_face.ClassLabel(names=["a", "unused", "b"])
    train = parquet({"label": classes}, label=[2, 0, 2] * 3)
    swapped = hugging_face.ClassLabel(names=["other", "b", "a"])
    val = parquet({"label": swapped}, label=[2, 1, 1] * 3)
    dataset, validation = open_data(train, f"{val}@train")
    assert dataset.label_names == ("a", "b")
    assert targets_of(dataset) == [1, 0, 1] * 3
    assert "skipped the classes of" in caplog.text
    assert "that have no images: unused" in caplog.text
    assert validation is not None
    assert targets_of(validation) == [0, 1, 1] * 3
    unknown = parquet({"label": swapped}, label=[2, 1, 0] * 3)
    with pytest.raises(DataError, match=r"has classes that the training data does not have: other"):
        open_data(train, f"{unknown}@train")


def test_labels_of_text_and_of_numbers_become_classes(
    hugging_face: Any, parquet: Callable[..., str]
) -> None:
    text = parquet({"label": hugging_face.Value("string")}, label=["c10", "c9", "c1"] * 3)
    dataset, _ = open_data(text)
    assert dataset.label_names == ("c1", "c9", "c10")
    assert targets_of(dataset) == [2, 1, 0] * 3
    with pytest.raises(DataError, match=r"are text, which cannot be streamed: use hfds/"):
        open_data(text.replace("hfds", "hfids"))
    numbers = parquet({"label": hugging_face.Value("int64")}, label=[10, 9, 200] * 3)
    dataset, _ = open_data(numbers)
    assert dataset.label_names == ("9", "10", "200")
    assert targets_of(dataset) == [1, 0, 2] * 3


def test_labels_that_are_not_one_class_each_are_refused(
    hugging_face: Any, parquet: Callable[..., str]
) -> None:
    classes = hugging_face.ClassLabel(names=["a", "b"])
    several = parquet({"label": hugging_face.Sequence(classes)}, label=[[0, 1]] * 9)
    with pytest.raises(DataError, match=r"the labels of .* are of type List, expected one class"):
        open_data(several)
    floats = parquet({"label": hugging_face.Value("float32")}, label=[0.5] * 9)
    with pytest.raises(DataError, match=r"are of type Value float32, expected one class per image"):
        open_data(floats)
    for nothing in (-1, None):
        unlabelled = parquet({"label": classes}, label=[0, 1, nothing] * 3)
        with pytest.raises(DataError, match=r"has images without a label \((-1|None)\)"):
            open_data(unlabelled)
    one = parquet({"label": classes}, label=[1] * 9)
    with pytest.raises(DataError, match="has one class, b: a classifier needs at least two"):
        open_data(one)
