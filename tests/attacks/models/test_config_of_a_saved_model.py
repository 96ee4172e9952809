"""A folder or a repository whose ``config.json`` makes timm hang or fail somewhere inside.

``--backbone local-dir:FOLDER`` and ``hf-hub:USER/REPO`` load a model that somebody else saved. At
64f666f, all of ``model_args`` in its ``config.json`` went to timm, so 100,000 layers hung. Now the
file is checked before timm is called. What timm cannot build after that is an error that names the
file.
"""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

import headkit

ARCHITECTURE = "test_resnet"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in the form in which timm saves it."""
    folder = tmp_path_factory.mktemp("saved")
    model = timm.create_model(ARCHITECTURE, num_classes=3)
    save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {key: model.pretrained_cfg[key] for key in ("input_size", "mean", "std", "crop_pct")}
    config = {"architecture": ARCHITECTURE, "num_classes": 3, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write(saved: Path, folder: Path, **changes: Any) -> str:
    """Write the model with other values in its ``config.json``; return its name for headkit."""
    (folder / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    config = json.loads((saved / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return f"local-dir:{folder}"


def test_model_that_timm_saved_is_loaded(saved: Path, tmp_path: Path) -> None:
    assert headkit.load_backbone(f"local-dir:{saved}")
    arguments = {"drop_rate": 0.1, "layers": [1, 1, 1, 1]}
    assert headkit.load_backbone(write(saved, tmp_path, model_args=arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        {"pretrained": True},
        {"pretrained_cfg": {"url": "http://127.0.0.1:1/x.pth"}},
        {"pretrained_cfg_overlay": {"url": "http://127.0.0.1:1/x.pth"}},
        {"cache_dir": "/tmp/elsewhere"},  # noqa: S108
        {"checkpoint_path": "../x.pth"},
        {"features_only": True},
        {"block": "os.system"},
        {"block": "../x"},
        {"layers": [100_000] * 4},
        {"layers": 10**9},
        {"in_chans": 10**12},
        {"stem_width": 1e308},
        {"stem_type": {"a": 1}},
        {"stem_type": "x" * 10_000},
        {"no_such_argument": 1},
        {"layers": []},
        {"layers": "abcd"},
        {"in_chans": -1},
        {"": 1},
        {"a b": 1},
        {"__class__": 1},
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_arguments_are_refused(
    arguments: dict[str, Any], saved: Path, tmp_path: Path
) -> None:
    name = write(saved, tmp_path, model_args=arguments)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(headkit.WeightsError, match=r"config\.json|do not fit"):
        headkit.load_backbone(name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "hf-hub:attacker/repo"},
        {"architecture": "local-dir:/etc"},
        {"architecture": "../x"},
        {"architecture": None},
        {"architecture": "no_such_architecture"},
        {"model_args": [1]},
        {"pretrained_cfg": "x"},
        {"num_classes": 2_000_000_000},
        {"num_classes": "many"},
        {"pretrained_cfg": {"num_classes": 2_000_000_000}},
        {"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}},
        {"pretrained_cfg": {"input_size": "x"}},
        {"pretrained_cfg": {"std": [0, 0, 0]}},
        {"pretrained_cfg": {"std": [float("nan")] * 3}},
        {"pretrained_cfg": {"mean": "x"}},
        {"pretrained_cfg": {"crop_pct": 0}},
        {"pretrained_cfg": {"interpolation": "magic"}},
        {"pretrained_cfg": {"crop_mode": 3}},
        {"pretrained_cfg": {"hf_hub_filename": "../../x.pth"}},
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_descriptions_are_refused(
    changes: dict[str, Any], saved: Path, tmp_path: Path
) -> None:
    name = write(saved, tmp_path, **changes)
    with pytest.raises(headkit.HeadkitError, match=r"config\.json"):
        headkit.load_backbone(name)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b"{}"])
def test_file_that_is_no_description_is_refused(
    content: bytes, saved: Path, tmp_path: Path
) -> None:
    name = write(saved, tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(headkit.WeightsError, match=r"config\.json"):
        headkit.load_backbone(name)


def test_nothing_is_fetched_because_the_description_says_so(saved: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.pth"
        cfg = {"url": url, "file": "/etc/passwd", "hf_hub_id": "a/b", "custom_load": "hf"}
        model = headkit.load_backbone(write(saved, tmp_path, pretrained_cfg=cfg))
        with pytest.raises(TimeoutError):
            server.accept()
    expected = headkit.load_backbone(f"local-dir:{saved}")
    assert headkit.fingerprint(model.state_dict()) == headkit.fingerprint(expected.state_dict())


def test_repository_on_the_hub_is_checked_like_a_folder(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(saved, tmp_path, model_args={"cache_dir": "/tmp/elsewhere"})  # noqa: S108

    def download(repo_id: str, filename: str, **_: object) -> str:
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    with pytest.raises(headkit.WeightsError, match=r"config\.json\.model_args has 'cache_dir'"):
        headkit.load_backbone("hf-hub:attacker/repo")
