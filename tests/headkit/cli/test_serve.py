"""The command ``headkit serve``: how it finds its backbone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch

from headkit.adapters.files import cache_folder
from headkit.registry.store.store import HeadStore
from tests.backbones import SMALL, random_backbone
from tests.heads import head_for


def test_damaged_backbone_in_the_cache_is_exported_again(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: None)
    model = random_backbone()
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), weights)
    HeadStore(tmp_path / "store").publish(head_for(model, 3), "flowers")
    command = ("serve", tmp_path / "store", "--backbone", SMALL, "--weights", weights)
    status, _, err = run(*command)
    assert (status, err) == (0, "")
    (path,) = (cache_folder() / "backbones").glob("*.onnx")
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    path.write_bytes(damaged)
    assert run(*command)[0] == 0
    assert path.read_bytes() == content
