"""Head files of somebody who means harm: each is refused by name, before timm is called."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import headkit
from headkit.adapters.heads.head import Head
from tests.heads import level_head, random_head

DESCRIPTION = random_head().to_json()
LEVEL_DESCRIPTION = level_head().to_json()
TENSORS = dict(random_head().tensors)


def write(path: Path, tensors: Any = None, **changes: Any) -> Path:
    description = {**DESCRIPTION, **changes}
    metadata = {"format": "headkit", "version": "2", "head": json.dumps(description)}
    values = {k: torch.from_numpy(v) for k, v in TENSORS.items()} if tensors is None else tensors
    safetensors.torch.save_file(values, path, metadata)
    return path


HOSTILE: dict[str, Any] = {
    "architecture": [
        *("local-dir:/etc", "hf-hub:a/b", "../x", "a b", 'x"; import os', "", "x\n", "x" * 101, 3),
        "hf_hub:a/b@main",
    ],
    "num_classes": [0, -1, 2**31, 20_000_000, 1.0, "3", None, True, 4],
    "num_features": [0, -5, 6, 10**30, "5"],
    "global_pool": ["x" * 65, "a\x1b[2J", 3, None],
    "kind": ["bert", "", "Own", ["own"], "mlp", "cosine"],
    "label_names": [["a"], ["a", "b", 3], "abc", {"0": "a"}, ["x" * 5000] * 3, []],
    "model_args": [
        {"layers": [10**6] * 4},
        {"layers": [512] * 4},
        {"depth": 10**9},
        {"depths": [[1e308]]},
        {"img_size": 10**7},
        {"norm_layer": {"a": 1}},
        {"a": "../../x"},
        {"a": "http://127.0.0.1/x"},
        {"a": "x y"},
        {"a": [[[[[1]]]]]},
        {"a": [0] * 129},
        {"x" * 65: 1},
        {str(n): 1 for n in range(101)},
        [1],
        "x",
    ],
    "task": ["dance", None, 1, ["multiclass"]],
    "temperature": [0, -1, float("nan"), float("inf"), "1", None, True, 1e-300],
    "metrics": [[[[[[[1]]]]]], {"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}],
    "created": ["now\n- injected: yes", "x" * 65, 3],
    "versions": [{"a": 1}, ["x"], {"a": "b" * 201}],
    "notes": [3, ["x"]],
    "requires": [["levels"], ["delta"], ["projection"], "levels", [["x"]], 5],
    "levels": [
        *([], {}, "last", [["last"]], [3], [None], 5, [{"name": "last"}], [{"width": 5}]),
        [{"name": "last", "width": 5}],  # requires lacks it
    ],
    "thresholds": [[0.5] * 3, [0.5] * 2, 0.5, {}, [0.5, 0.5, "x"], [0.5, 0.5, 2], [-1, 0, 1]],
    "pixels": [{}, None, [], {"orientation": "exif"}, 3],
}
HOSTILE_BACKBONE: dict[str, Any] = {
    "tag": ["../x", "a\nb", "x" * 101, 3, "a b"],
    "source": ["hub:x\nlicense: mit", "hub:\x1b[31m", "x" * 1001, "a\u202eb", 7],
    "parameters": [-1, 1.5, "1", 2**60],
    "fingerprint": ["", "0" * 63, "G" * 64, "0" * 64 + "\n", 0],
    "checksums": [{"a": "b"}, ["x"], {"a" * 300: "0" * 64}],
}
HOSTILE_PREPROCESSING: dict[str, Any] = {
    "input_size": [
        *([3, 0, 8], [3, 8], [3, 8, 8, 8], [3, -8, 8], [3, 10**6, 8], [3, 8.5, 8], "388", 3),
        [1, 8, 8],
    ],
    "mean": [[0.5], [0.5] * 2, [float("nan")] * 3, [1e9] * 3, ["a"] * 3, [], 0.5],
    "std": [[0, 1, 1], [1e-300] * 3, [float("inf")] * 3, [-1] * 3, None],
    "interpolation": ["magic", "", 3, ["bicubic"]],
    "crop_pct": [0, -1, float("nan"), 1e9, "1", None, 1e-9],
    "crop_mode": ["zoom", "", 3],
}
CASES = [
    *(({key: value}, key) for key, values in HOSTILE.items() for value in values),
    *(
        ({"backbone": {**DESCRIPTION["backbone"], key: value}}, key)
        for key, values in HOSTILE_BACKBONE.items()
        for value in values
    ),
    *(
        ({"pretrained_cfg": {**DESCRIPTION["pretrained_cfg"], key: value}}, key)
        for key, values in HOSTILE_PREPROCESSING.items()
        for value in values
    ),
]


@pytest.mark.parametrize(
    ("changes", "key"), CASES, ids=[f"{number}-{key}" for number, (_, key) in enumerate(CASES)]
)
def test_value_out_of_bounds_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    path = write(tmp_path / "x.safetensors", **changes)
    with pytest.raises(headkit.HeadFormatError) as refused:
        Head.load(path)
    message = str(refused.value)
    words = {
        "num_classes": "classes",
        "num_features": "features",
        "kind": "kind",
        "label_names": "",
    }
    assert words.get(key, key) in message
    assert message.isprintable()
    assert len(message) < 1000


def write_levels(path: Path, tensors: Any = None, **changes: Any) -> Path:
    values = dict(level_head().tensors) if tensors is None else tensors
    described = {k: torch.as_tensor(v) for k, v in values.items()}
    return write(path, described, **{**LEVEL_DESCRIPTION, **changes})


HOSTILE_LEVEL: dict[str, list[Any]] = {
    "name": [
        *("", "x" * 201, "a b", "../x", "a/b", "layer1\n", "a\x1b[2J", "a\u202eb", "a-b"),
        *(
            "layer1()",
            "a[0]",
            "__import__('os')",
            "a:b",
            "a:1:2",
            ":1",
            "last",
            3,
            None,
            ["a"],
            "é",
        ),
    ],
    "width": [0, -1, 2**24 + 1, 10**30, 1.5, "12", None, True, 13, [12]],
    "layout": ["", "NCWH", "nchw", 3, None, ["NCHW"], "x" * 1000],
    "prefix": [-1, 1, 2**16 + 1, 1.0, "0", None, False],
    "item": [-1, 1001, 1.5, "0", True, [0]],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in HOSTILE_LEVEL.items() for value in values]
)
def test_level_out_of_bounds_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    levels = [dict(one) for one in LEVEL_DESCRIPTION["levels"]]
    levels[1][key] = value
    path = write_levels(tmp_path / "x.safetensors", levels=levels)
    with pytest.raises(headkit.HeadFormatError) as refused:
        Head.load(path)
    message = str(refused.value)
    # A width in the bounds contradicts the tensors, and a second "last" has no layout.
    assert (key if value not in (13, "last") else "width" if value == 13 else "last") in message
    assert message.isprintable()
    assert len(message) < 1000


def test_levels_that_contradict_the_rest_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    levels = LEVEL_DESCRIPTION["levels"]
    assert Head.load(write_levels(path)) == level_head(created=LEVEL_DESCRIPTION["created"])
    many = [{"name": f"layer{n}", "width": 1, "layout": "NCHW"} for n in range(65)]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"levels": many}, "levels is a list of 65 values, expected a list of 1 to 64 objects"),
        ({"levels": [*levels, levels[1]]}, "2 levels called 'layer1', expected distinct names"),
        ({"levels": [*levels, levels[0]]}, "2 levels called 'last', expected distinct names"),
        ({"levels": levels[:2]}, r"expected \{'level_head.weight': \[3, 17\]"),
        ({"requires": []}, "has levels, but its requires lacks 'levels'"),
        ({"requires": ["levels", "projection"]}, "requires 'projection', which this headkit"),
        ({"kind": "own"}, "has levels and the kind 'own', expected the kind 'linear'"),
        ({"kind": "mlp"}, "has levels and the kind 'mlp', expected the kind 'linear'"),
        ({"num_classes": 4, "label_names": None}, r"level_head.weight': \[4, 31\]"),
    ]
    for changes, message in cases:
        with pytest.raises(headkit.HeadFormatError, match=message):
            Head.load(write_levels(path, **changes))
    shapes: list[dict[str, tuple[int, ...]]] = [
        {"level_head.weight": (3, 31)},
        {"level_head.weight": (3, 31), "level_head.bias": (4,)},
        {"level_head.weight": (3, 31), "level_head.bias": (3, 1)},
        {"level_head.weight": (31, 3), "level_head.bias": (3,)},
        {"level_head.weight": (3, 31, 1), "level_head.bias": (3,)},
        {"fc.weight": (3, 31), "fc.bias": (3,)},
        {"level_head.weight": (3, 31), "level_head.bias": (3,), "fc.bias": (3,)},
    ]
    for one in shapes:
        tensors = {name: torch.zeros(shape) for name, shape in one.items()}
        with pytest.raises(headkit.HeadFormatError, match="has tensors of the shapes"):
            Head.load(write_levels(path, tensors))


@pytest.mark.parametrize(
    "tensors",
    [
        {"fc.weight": (4, 5), "fc.bias": (3,)},
        {"fc.weight": (3, 5), "fc.bias": (4,)},
        {"fc.weight": (3, 6), "fc.bias": (3,)},
        {"fc.weight": (15,), "fc.bias": (3,)},
        {"fc.weight": (3, 5, 2, 2)},
        {"fc.bias": (3,)},
        {"fc.weight": (0, 5)},
    ],
)
@pytest.mark.parametrize("kind", ["own", "linear"])
def test_tensors_that_contradict_the_description_are_refused(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], kind: str
) -> None:
    zeros = {name: torch.zeros(shape) for name, shape in tensors.items()}
    path = write(tmp_path / "x.safetensors", zeros, kind=kind)
    with pytest.raises(headkit.HeadFormatError, match=r"tensor|bias|features"):
        Head.load(path)


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int8, torch.int64, torch.uint8, torch.uint16, torch.bool, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_or_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        name: torch.ones(np.shape(value)).to(dtype) for name, value in random_head().tensors.items()
    }
    path = write(tmp_path / "x.safetensors", tensors)
    if dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        head = Head.load(path)
        assert head.tensors["fc.weight"].astype(np.float32).tolist() == [[1.0] * 5] * 3
        assert Head.load(head.save(tmp_path / "again.safetensors")) == head
    else:
        with pytest.raises(headkit.HeadFormatError, match=r"has the type [A-Z0-9_]+ and"):
            Head.load(path)


def test_every_flipped_bit_of_a_head_file_is_found(tmp_path: Path) -> None:
    path = random_head(label_names=("a", "b", "c")).save(tmp_path / "head.safetensors")
    content = path.read_bytes()
    for bit in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(headkit.HeadFormatError, match=r"head\.safetensors"):
            Head.load(path)


def test_head_file_that_another_program_changed_is_refused(tmp_path: Path) -> None:
    path = random_head().save(tmp_path / "head.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).half() for name in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(headkit.HeadFormatError, match=r"its F16 tensors .* remove 'checksum'"):
        Head.load(path)
    for extra in ({}, {"note": "x"}):
        safetensors.torch.save_file(tensors, path, {**metadata, **extra, "checksum": "0" * 64})
        with pytest.raises(headkit.HeadFormatError, match="remove 'checksum'"):
            Head.load(path)
    del metadata["checksum"]
    safetensors.torch.save_file(tensors, path, {**metadata, "chekcsum": "0" * 64})
    with pytest.raises(headkit.HeadFormatError, match="unknown key 'chekcsum' and no 'checksum'"):
        Head.load(path)
    safetensors.torch.save_file(tensors, path, metadata)
    assert Head.load(path).tensors["fc.weight"].dtype == np.float16


def test_checksum_is_what_the_specification_says(tmp_path: Path) -> None:
    path = random_head().save(tmp_path / "head.safetensors")
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        digest = hashlib.sha256(metadata["head"].encode() + b"\n")
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            shape = ",".join(map(str, tensor.shape))
            digest.update(f"{name}\tF32\t{shape}\n".encode() + tensor.tobytes())
    assert metadata["checksum"] == digest.hexdigest()


def test_values_that_are_not_finite_are_refused_in_every_float(tmp_path: Path) -> None:
    for dtype in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16):
        for value in (np.nan, np.inf, -np.inf):
            with pytest.raises(headkit.HeadFormatError, match="not finite"):
                random_head(tensors={"fc.weight": np.full((3, 5), value).astype(dtype)})


def test_sparse_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    size = 400 * 2**20
    header = json.dumps(
        {
            "fc.weight": {
                "dtype": "I8",
                "shape": [3, size // 3],
                "data_offsets": [0, size // 3 * 3],
            },
            "__metadata__": {"format": "headkit", "version": "2", "head": json.dumps(DESCRIPTION)},
        }
    ).encode()
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size // 3 * 3)
    assert path.stat().st_blocks * 512 < 2**20
    start = time.monotonic()
    with pytest.raises(headkit.HeadFormatError, match="has the type I8"):
        Head.load(path)
    assert time.monotonic() - start < 5


def test_plain_arguments_of_real_architectures_pass() -> None:
    arguments = {
        "img_size": (224, 448),
        "layers": [3, 8, 36, 3],
        "depth": 24,
        "embed_dim": 1536,
        "block_args": [["ir_r4_k3_s2_e6_c24_se0.25"]],
        "drop_path_rate": 0.1,
        "qkv_bias": False,
        "in_chans": 1,
        "global_pool": "avg",
        "class_token": None,
    }
    assert random_head(model_args=arguments).model_args == arguments
