"""A head file whose description makes timm fetch and write what its author chooses.

``headkit export`` loads the backbone that a head file names. At 64f666f, all of ``model_args`` went
to ``timm.create_model``: a ``pretrained_cfg`` with a URL and a ``cache_dir`` wrote the attacker's
file wherever he liked, for example where Python runs it at its next start. Now the head refuses its
description before timm is called, no connection is made and no file is written.
"""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm

import headkit
from tests.attacks.hostile_files import DESCRIPTION, write_head

CODE = b"print('the attacker runs')"
FILE = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(CODE), CODE)


@pytest.fixture(scope="module")
def listener() -> Iterator[tuple[str, list[Any]]]:
    """The address of a socket, and the connections that were made to it."""
    connections: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        ends = threading.Event()

        def accept() -> None:
            while not ends.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                connections.append(connection)
                with connection:
                    connection.recv(1000)
                    connection.sendall(FILE)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/weights.pth", connections
        ends.set()
        thread.join(10)


URL = "URL"
"""Stands for the address of the listener."""
HOSTILE_ARGUMENTS: list[dict[str, Any]] = [
    {"pretrained_cfg": {"url": URL}, "cache_dir": "stolen"},
    {"pretrained_cfg": {"url": URL}},
    {"pretrained_cfg": {"file": "/etc/passwd"}},
    {"pretrained_cfg": {"hf_hub_id": "attacker/repo"}},
    {"pretrained_cfg": "attacker"},
    {"pretrained_cfg_overlay": {"url": URL}},
    {"pretrained_cfg_overlay": {"hf_hub_id": "attacker/repo", "hf_hub_filename": "x.pkl"}},
    {"pretrained_cfg_overlay": {"file": "../../secret.pth"}},
    {"pretrained_cfg_overlay": {"state_dict": {}}},
    {"pretrained_cfg_overlay": {"custom_load": "x"}},
    {"pretrained": True},
    {"pretrained": URL},
    {"pretrained_strict": False},
    {"pretrained_filter_fn": "os.system"},
    {"pretrained_custom_load": True},
    {"pretrained_model_args": {"url": URL}},
    {"checkpoint_path": "/etc/passwd"},
    {"checkpoint_path": "../x.pth"},
    {"checkpoint_path": "x.pth"},
    {"checkpoint_path": URL},
    {"cache_dir": "/tmp/stolen"},  # noqa: S108
    {"cache_dir": "stolen"},
    {"cfg": {"url": URL}},
    {"model_cfg": {"url": URL}},
    {"model_cls": "os.system"},
    {"feature_cls": "getter"},
    {"feature_cfg": {"out_indices": [0]}},
    {"features_only": True},
    {"kwargs_filter": ["x"]},
    {"scriptable": True},
    {"exportable": True},
    {"no_jit": True},
    {"device": "cuda:9"},
    {"device": "meta"},
    {"dtype": "float16"},
    {"variant": "resnet50"},
    {"self": 1},
    {"args": [1]},
    {"kwargs": {"pretrained": True}},
    {"__class__": "x"},
    {"layers": [10**9] * 4},
    {"depth": 10**9},
    {"img_size": [10**9, 10**9]},
    {"norm_layer": "__import__('os').system('x')"},
]
HOSTILE_PREPROCESSING: list[dict[str, Any]] = [
    *(
        {"input_size": size}
        for size in ([3, 0, 0], [3, 10**9, 10**9], [10**9, 8, 8], "x", [3], None)
    ),
    *({"mean": mean} for mean in ([], "x", [float("nan")] * 3, [1] * 2, [[1]] * 3, {"a": 1})),
    *({"std": std} for std in ([0] * 3, [-1] * 3, [1e-40] * 3, "x", [float("inf")] * 3, None)),
    *({"crop_pct": pct} for pct in (0, -1, 1e-9, float("nan"), "1", [1], None)),
    *({"crop_mode": mode} for mode in ("zoom", 3, ["center"])),
    *({"interpolation": name} for name in ("magic", 3, None, URL)),
]


def write(path: Path, url: str, **changes: Any) -> Path:
    text = json.dumps(changes).replace(f'"{URL}"', json.dumps(url))
    return write_head(path, **json.loads(text))


@pytest.fixture
def no_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("timm was called")

    monkeypatch.setattr(timm, "create_model", refuse)


def attack(path: Path, folder: Path, listener: tuple[str, list[Any]], **options: Any) -> None:
    before = sorted(folder.rglob("*"))
    listener[1].clear()
    with pytest.raises(headkit.HeadkitError) as refused:
        headkit.export(path, folder / "out.onnx", **options)
    assert isinstance(refused.value, headkit.HeadFormatError | headkit.WeightsError)
    assert str(refused.value).isprintable()
    assert sorted(folder.rglob("*")) == before
    assert listener[1] == []


def test_no_file_of_the_attacker_is_written(
    tmp_path: Path, listener: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    arguments = {"pretrained_cfg": {"url": URL}, "cache_dir": str(tmp_path / "site-packages")}
    backbone = {**DESCRIPTION["backbone"], "source": "hub:x", "tag": ""}
    changes: dict[str, Any] = {"model_args": arguments, "backbone": backbone}
    path = write(tmp_path / "x.safetensors", listener[0], **changes)
    with pytest.raises(headkit.HeadkitError) as refused:
        headkit.export(path, tmp_path / "out.onnx")
    assert list(tmp_path.rglob("*")) == [path]
    assert listener[1] == []
    assert isinstance(refused.value, headkit.HeadFormatError)


@pytest.mark.usefixtures("no_timm")
@pytest.mark.parametrize("number", range(len(HOSTILE_ARGUMENTS)))
def test_hostile_model_args_are_refused_before_timm_is_called(
    number: int, tmp_path: Path, listener: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "x.safetensors", listener[0], model_args=HOSTILE_ARGUMENTS[number])
    attack(path, tmp_path, listener)
    (tmp_path / "weights.safetensors").write_bytes(path.read_bytes())
    attack(path, tmp_path, listener, weights=tmp_path / "weights.safetensors")


@pytest.mark.usefixtures("no_timm")
@pytest.mark.parametrize("number", range(len(HOSTILE_PREPROCESSING)))
def test_hostile_preprocessing_is_refused_before_timm_is_called(
    number: int, tmp_path: Path, listener: tuple[str, list[Any]]
) -> None:
    cfg = {**DESCRIPTION["pretrained_cfg"], **HOSTILE_PREPROCESSING[number]}
    attack(write(tmp_path / "x.safetensors", listener[0], pretrained_cfg=cfg), tmp_path, listener)


@pytest.mark.usefixtures("no_timm")
@pytest.mark.parametrize(
    ("architecture", "source"),
    [
        ("local-dir:/etc", "hub:x"),
        ("hf-hub:attacker/repo", "hub:attacker/repo"),
        ("resnet50", "file:../../secret.pth"),
        ("resnet50", "file:secret.pth"),
        ("resnet50", "folder:/etc"),
        ("resnet50", "hub:attacker/repo"),
        ("resnet50", "hub:http://127.0.0.1/x"),
        ("resnet50", "url:http://127.0.0.1/x"),
        ("resnet50", ""),
    ],
)
def test_what_a_file_names_is_neither_opened_nor_fetched(
    architecture: str, source: str, tmp_path: Path, listener: tuple[str, list[Any]]
) -> None:
    (tmp_path / "secret.pth").write_bytes(b"secret")
    backbone = {**DESCRIPTION["backbone"], "source": source, "tag": ""}
    path = write(
        tmp_path / "x.safetensors", listener[0], architecture=architecture, backbone=backbone
    )
    attack(path, tmp_path, listener)


def test_there_are_enough_cases() -> None:
    assert len(HOSTILE_ARGUMENTS) >= 40
    assert len(HOSTILE_PREPROCESSING) >= 30
