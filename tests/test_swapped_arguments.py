"""A file of another kind than an argument takes is named, and so is what belongs there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import headkit
from headkit.adapters.file_kinds import ADAPTER, HEAD, MODEL, TENSORS, detect_file_kind
from headkit.registry.hub import hub
from tests.fixtures.v0_1_0.make import BACKBONES

Run = Callable[..., tuple[int, str, str]]

FOLDER = Path(__file__).parent / "fixtures" / "v0_1_0"
HEAD_FILE = FOLDER / "heads" / "resnet_own.safetensors"
MODEL_FILE = FOLDER / "models" / "resnet_merged.onnx"
SWAPPABLE = FOLDER / "models" / "resnet_swappable.onnx"
ADAPTER_FILE = FOLDER / "models" / "resnet_other.onnx_adapter"
WEIGHTS_FILE = FOLDER / "backbones" / "resnet.safetensors"
IMAGE = FOLDER / "images" / "dark" / "0.png"

NOT_A_MODEL = "it is a head file, expected an ONNX model"
NOT_A_HEAD = "it is an ONNX model, expected a head file"


def test_kind_of_a_file_comes_from_its_content_and_then_its_suffix(tmp_path: Path) -> None:
    assert detect_file_kind(HEAD_FILE) is HEAD
    assert detect_file_kind(MODEL_FILE) is MODEL
    assert detect_file_kind(ADAPTER_FILE) is ADAPTER
    assert detect_file_kind(WEIGHTS_FILE) is TENSORS
    assert detect_file_kind(IMAGE) is None
    assert detect_file_kind(tmp_path) is None
    assert detect_file_kind(tmp_path / "missing.onnx") is None
    (tmp_path / "renamed.onnx").write_bytes(HEAD_FILE.read_bytes())
    assert detect_file_kind(tmp_path / "renamed.onnx") is HEAD


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 8 + b"{",
        b"\x02" + b"\x00" * 7 + b"{}",
        b"\x05" + b"\x00" * 7 + b"{[[[]",
        (9).to_bytes(8, "little") + b'{"a\xff": 1}',
        (21).to_bytes(8, "little") + b'{"__metadata__": [1]}',
    ],
)
def test_damaged_files_have_no_kind_or_are_tensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    assert detect_file_kind(tmp_path / "x.safetensors") in (None, TENSORS)


def _backbone() -> Any:
    architecture, kwargs = BACKBONES["resnet"]
    return headkit.load_backbone(architecture, WEIGHTS_FILE, **kwargs)


CALLS: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "Predictor": (lambda _: headkit.Predictor(HEAD_FILE), headkit.ExportError, NOT_A_MODEL),
    "Predictor, head": (
        lambda _: headkit.Predictor(SWAPPABLE, {"a": MODEL_FILE}),
        headkit.HeadFormatError,
        NOT_A_HEAD,
    ),
    "Head.load": (lambda _: headkit.Head.load(MODEL_FILE), headkit.HeadFormatError, NOT_A_HEAD),
    "Head.load, adapter": (
        lambda _: headkit.Head.load(ADAPTER_FILE),
        headkit.HeadFormatError,
        "it is an adapter file of ONNX Runtime, expected a head file",
    ),
    "attach": (
        lambda _: headkit.attach(_backbone(), MODEL_FILE),
        headkit.HeadFormatError,
        NOT_A_HEAD,
    ),
    "attach, swapped": (
        lambda _: headkit.attach(HEAD_FILE, _backbone()),  # type: ignore[arg-type]
        ValueError,
        "the first argument of attach is a .*, expected a model",
    ),
    "graft": (
        lambda out: headkit.graft(HEAD_FILE, MODEL_FILE, out / "m.onnx"),
        headkit.ExportError,
        f"cannot use .*resnet_own.safetensors as the model: {NOT_A_MODEL}.*the model first",
    ),
    "graft, two models": (
        lambda out: headkit.graft(MODEL_FILE, SWAPPABLE, out / "m.onnx"),
        headkit.HeadFormatError,
        f"cannot use .*resnet_swappable.onnx as the head: {NOT_A_HEAD}",
    ),
    "export": (
        lambda out: headkit.export(MODEL_FILE, out / "m.onnx"),
        headkit.HeadFormatError,
        NOT_A_HEAD,
    ),
    "export, weights": (
        lambda out: headkit.export(HEAD_FILE, out / "m.onnx", weights=HEAD_FILE),
        headkit.WeightsError,
        "it is a head file, expected the weights of a backbone",
    ),
    "load_backbone": (
        lambda _: headkit.load_backbone(str(HEAD_FILE)),
        headkit.UnknownArchitecture,
        "resnet_own.safetensors is a head file, expected the name of a timm architecture",
    ),
    "info": (
        lambda out: headkit.info(out / "renamed.onnx"),
        headkit.ExportError,
        NOT_A_MODEL,
    ),
    "publish": (
        lambda out: headkit.HeadStore(out / "store").publish(MODEL_FILE, "shapes"),
        headkit.HeadFormatError,
        NOT_A_HEAD,
    ),
    "push": (
        lambda _: hub.push(MODEL_FILE, "hf://someone/shapes"),
        headkit.HeadFormatError,
        NOT_A_HEAD,
    ),
    "pull": (
        lambda out: headkit.HeadStore(FOLDER / "store").pull("shapes@prod", out / "head.bin"),
        headkit.OutputError,
        "its suffix is '.bin', expected '.safetensors' for a head file",
    ),
    "save": (
        lambda out: headkit.Head.load(HEAD_FILE).save(out / "head.onnx"),
        headkit.OutputError,
        "its suffix is '.onnx', expected '.safetensors' for a head file",
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_functions_name_a_file_of_another_kind(call: str, tmp_path: Path) -> None:
    (tmp_path / "renamed.onnx").write_bytes(HEAD_FILE.read_bytes())
    function, error, message = CALLS[call]
    with pytest.raises(error, match=message):
        function(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["renamed.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", MODEL_FILE, "--out", "m.onnx"), NOT_A_HEAD),
        (("graft", HEAD_FILE, MODEL_FILE, "--out", "m.onnx"), "graft MODEL.onnx HEAD.safetensors"),
        (("predict", HEAD_FILE, IMAGE), NOT_A_MODEL),
        (
            ("predict", IMAGE, MODEL_FILE),
            "is an image, expected an ONNX model; pass the model first",
        ),
        (("predict", MODEL_FILE, HEAD_FILE), "is a head file, expected an image.* --head"),
        (("bench", WEIGHTS_FILE), "not a head that headkit wrote"),
        (
            ("fit", "--backbone", HEAD_FILE, "--data", "images", "--out", "h.safetensors"),
            "expected the name of a timm architecture",
        ),
        (
            ("serve", FOLDER / "store", "--backbone", HEAD_FILE),
            "expected the name of a timm architecture",
        ),
        (("heads", "publish", MODEL_FILE, "--name", "a", "--store", "store"), NOT_A_HEAD),
        (("heads", "push", MODEL_FILE, "hf://someone/shapes"), NOT_A_HEAD),
    ],
    ids=lambda value: " ".join(map(str, value[:2])) if isinstance(value, tuple) else "",
)
def test_commands_name_a_file_of_another_kind(
    run: Run, arguments: tuple[object, ...], message: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FOLDER / "images", "images")
    status, _, error = run(*arguments)
    assert status == 2
    assert re.search(message, error), error
    assert error.count("\n") == 1
