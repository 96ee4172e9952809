import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import headkit
from headkit.adapters.heads.head import Head
from headkit.adapters.images.pixel_rule import CURRENT_RULE, VERSION_1_RULE
from tests.heads import level_head, random_head

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    labels=st.none() | st.lists(TEXT, min_size=3, max_size=3).map(tuple),
    notes=TEXT,
    temperature=st.floats(1e-3, 1e3),
    metrics=st.dictionaries(TEXT, st.floats(allow_nan=False) | st.integers() | TEXT, max_size=5),
)
def test_a_loaded_head_equals_the_saved_one(
    tmp_path: Path,
    labels: tuple[str, ...] | None,
    notes: str,
    temperature: float,
    metrics: dict[str, object],
) -> None:
    saved = random_head(label_names=labels, notes=notes, temperature=temperature, metrics=metrics)
    loaded = Head.load(saved.save(tmp_path / "head.safetensors"))
    assert loaded.to_json() == saved.to_json()
    assert all(np.array_equal(loaded.tensors[name], saved.tensors[name]) for name in saved.tensors)
    assert loaded.digest == saved.digest


@pytest.mark.parametrize("num_classes", [1, 10, 1000])
def test_file_is_its_tensors_its_label_names_and_at_most_4_kib(
    tmp_path: Path, num_classes: int
) -> None:
    saved = random_head(num_classes)
    size = saved.save(tmp_path / "head.safetensors").stat().st_size
    labels = sum(len(json.dumps(name)) + 5 for name in saved.label_names or ())
    assert size <= saved.num_bytes + labels + 4096


def test_description_above_4_kib_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = random_head().save(tmp_path / "head.safetensors")
    before = path.read_bytes()
    with pytest.raises(headkit.HeadFormatError, match="at most 4096"):
        random_head(notes="x" * 5000).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["head.safetensors"]


def test_equal_heads_give_equal_bytes() -> None:
    assert (
        random_head(created="2026-01-01").serialize()
        == random_head(created="2026-01-01").serialize()
    )


def test_file_is_what_its_specification_says(tmp_path: Path) -> None:
    path = random_head().save(tmp_path / "head.safetensors")
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert header["__metadata__"]["format"] == "headkit"
    assert header["__metadata__"]["version"] == "2"
    description = json.loads(header["__metadata__"]["head"])
    assert description["architecture"] == "resnet50"
    assert description["pixels"] == {"orientation": "exif", "alpha": "white", "depth": "high_byte"}
    with safe_open(path, framework="numpy") as file:
        assert sorted(file.keys()) == ["fc.bias", "fc.weight"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_damaged_file_loads_or_is_a_format_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(random_head().serialize())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(headkit.HeadFormatError):  # anything else fails the test
        Head.load(path)


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    content = random_head().serialize()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(kept if kept >= 1 or kept == 0 else kept * len(content))])
    with pytest.raises(headkit.HeadFormatError, match=r"cannot read head .*cut\.safetensors"):
        Head.load(path)


METADATA = {"format": "headkit"}


def _file(path: Path, metadata: dict[str, str] | None) -> Path:
    safetensors.numpy.save_file({"fc.weight": np.ones((3, 5), np.float32)}, path, metadata)
    return path


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(headkit.HeadFormatError, match="no such file"):
        Head.load(path)
    with pytest.raises(headkit.HeadFormatError, match="format is None"):
        Head.load(_file(path, None))
    with pytest.raises(headkit.HeadFormatError, match="install a newer headkit"):
        Head.load(_file(path, {"format": "headkit", "version": "3", "head": "{}"}))


def test_version_2_file_says_what_its_reader_must_know(tmp_path: Path) -> None:
    head = random_head()  # another one may have been made in another second
    path, described = tmp_path / "x.safetensors", head.to_json()

    def read(version: str, **changes: object) -> Head:
        text = json.dumps({**described, **changes})
        save_file(dict(head.tensors), path, {**METADATA, "version": version, "head": text})
        return Head.load(path)

    assert read("2", requires=[], unknown_key=1) == read("2") == head
    with pytest.raises(headkit.HeadFormatError, match=r"requires 'other'.*install a newer"):
        read("2", requires=["other"])
    with pytest.raises(headkit.HeadFormatError, match="alpha is 'black', expected one of white"):
        read("2", pixels={**described["pixels"], "alpha": "black"})
    with pytest.raises(headkit.HeadFormatError, match=r"pixels is \{\}, expected an object with"):
        read("2", pixels={})
    del described["pixels"]
    with pytest.raises(headkit.HeadFormatError, match=r"head\.pixels is missing"):
        read("2")
    # Version 1 says nothing about pixels, whatever stands in the file.
    assert read("1", pixels=CURRENT_RULE.to_json(), requires=["x"]).pixels == VERSION_1_RULE


def test_head_without_a_new_part_is_written_in_version_1(tmp_path: Path) -> None:
    old = random_head().with_changes(pixels=VERSION_1_RULE)
    path = old.save(tmp_path / "old.safetensors")
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["version"] == "1"
    assert "pixels" not in json.loads(metadata["head"])
    assert Head.load(path) == old != random_head()


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ("", "cannot read"),
        ("[]", r"head is \[\], expected an object"),
        ("{}", r"head\.architecture is missing"),
        ("[" * 100_000, "cannot read"),
        (
            json.dumps({**random_head().to_json(), "num_classes": "3"}),
            "num_classes is '3', expected a whole number from 1",
        ),
        (json.dumps({**random_head().to_json(), "num_classes": True}), "num_classes is True"),
        (
            json.dumps({**random_head().to_json(), "label_names": ["a", "b"]}),
            "2 label names, expected 3",
        ),
        (
            json.dumps({**random_head().to_json(), "num_classes": 2}),
            r"has 2 classes, but no tensor with that many rows",
        ),
        (
            json.dumps({**random_head().to_json(), "num_features": 6}),
            r"takes 6 features, but its tensors take \[5\]",
        ),
        (
            json.dumps({**random_head().to_json(), "label_names": [1, 2, 3]}),
            r"label_names is \[1, 2, 3\], expected a list of",
        ),
        (json.dumps({**random_head().to_json(), "task": "dance"}), "task is 'dance'"),
        (
            json.dumps({**random_head().to_json(), "temperature": float("nan")}),
            "temperature is nan",
        ),
        (
            json.dumps({**random_head().to_json(), "backbone": {}}),
            r"head\.backbone\.tag is missing",
        ),
    ],
)
def test_wrong_description_is_reported(tmp_path: Path, described: str, message: str) -> None:
    metadata = {"format": "headkit", "version": "1", "head": described}
    with pytest.raises(headkit.HeadFormatError, match=message):
        Head.load(_file(tmp_path / "x.safetensors", metadata))


def test_unknown_keys_are_ignored_so_that_version_1_can_grow(tmp_path: Path) -> None:
    described = json.dumps({**random_head().to_json(), "novelty": 1})
    path = _file(
        tmp_path / "x.safetensors", {"format": "headkit", "version": "1", "head": described}
    )
    assert Head.load(path).architecture == "resnet50"


def test_head_with_values_that_are_not_finite_is_refused() -> None:
    with pytest.raises(headkit.HeadFormatError, match=r"fc\.weight holds values"):
        random_head(tensors={"fc.weight": np.full((3, 5), np.nan, np.float32)})


def test_head_over_levels_is_the_file_that_the_specification_describes(tmp_path: Path) -> None:
    head = level_head()
    path = head.save(tmp_path / "head.safetensors")
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["version"] == "2"
        description = json.loads(file.metadata()["head"])
        assert sorted(file.keys()) == ["level_head.bias", "level_head.weight"]
    assert description["requires"] == ["levels"]
    assert description["levels"] == [
        {"name": "last", "width": 5},
        {"name": "layer1", "width": 12, "layout": "NCHW"},
        {"name": "blocks.2", "width": 14, "layout": "NLC", "prefix": 1, "item": 0},
    ]
    loaded = Head.load(path)
    assert loaded == head
    assert loaded.digest == head.digest
    assert loaded.levels == head.levels
    assert "levels=last, layer1, blocks.2" in repr(loaded)
    assert headkit.info(path)["levels"] == description["levels"]
    # Equality sees the levels, whose order is that of the weights.
    assert head.with_changes(levels=(head.levels[0], head.levels[2], head.levels[1])) != head
    for rule in (VERSION_1_RULE, CURRENT_RULE):
        again = head.with_changes(pixels=rule)
        assert Head.load(again.save(path)).pixels == rule
        assert again.format_version == "2"


def test_head_without_levels_does_not_mention_them() -> None:
    description = random_head().to_json()
    assert not {"levels", "requires", "thresholds"} & set(description)


def test_thresholds_are_data_of_the_labels(tmp_path: Path) -> None:
    classes = 5000
    thresholds = tuple(round(number / classes, 6) for number in range(classes))
    head = random_head(classes, task="multilabel", thresholds=thresholds)
    loaded = Head.load(head.save(tmp_path / "head.safetensors"))
    assert loaded.thresholds == thresholds
    assert loaded == head
    old = head.with_changes(pixels=VERSION_1_RULE)
    assert old.format_version == "2"
    assert Head.load(old.save(tmp_path / "head.safetensors")) == old
    assert head.with_changes(thresholds=None, pixels=VERSION_1_RULE).format_version == "1"
    for changes, message in (
        ({"task": "multiclass"}, "has thresholds and the task 'multiclass', expected multilabel"),
        ({"thresholds": (0.5, 0.5)}, "has 2 thresholds, expected 5000, one per class"),
        ({"thresholds": (*thresholds[:-1], 1.5)}, "head.thresholds is a list of 5,000 values"),
    ):
        with pytest.raises(headkit.HeadFormatError, match=message):
            head.with_changes(**changes)
