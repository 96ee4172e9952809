import re
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from torch import nn

import headkit
from headkit.export.graph import onnx_file
from tests.images import X
from tests.logits import assert_close, torch_logits


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every model as too large for one file."""
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 1000)


def data_of(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.*data"))


@pytest.fixture(scope="session")
def external(
    model: nn.Module, heads: dict[str, headkit.Head], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a merged model and a backbone, both with their weights beside the file."""
    folder = tmp_path_factory.mktemp("external")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "MAX_BYTES", 1000)
        headkit.export(heads["old"], folder / "model.onnx", backbone=model)
        headkit.export(heads["old"], folder / "backbone.onnx", "backbone", backbone=model)
    return folder


def copy(path: Path, folder: Path) -> Path:
    """Copy a model and its weights."""
    for file in (path, *data_of(path)):
        shutil.copy(file, folder)
    return folder / path.name


@pytest.mark.usefixtures("beside")
def test_external_weights_are_grafted_and_reported_if_missing(
    model: nn.Module, heads: dict[str, headkit.Head], tmp_path: Path
) -> None:
    path, other = tmp_path / "large.onnx", tmp_path / "other.onnx"
    done = headkit.export(heads["old"], path, backbone=model)
    (data,) = data_of(path)
    assert re.fullmatch(r"large\.onnx\.[0-9a-f]{8}\.data", data.name)
    assert data.stat().st_size > 10 * path.stat().st_size
    (tmp_path / "large.onnx.data").write_bytes(b"of an earlier version")
    assert done.num_bytes == path.stat().st_size + data.stat().st_size
    assert onnx_file.num_bytes(path) == done.num_bytes
    headkit.graft(path, heads["new"], other)
    data.rename(tmp_path / "away")
    assert_close(headkit.Predictor(other).logits(X.numpy()), torch_logits(model, heads["new"], X))
    with pytest.raises(headkit.ExportError, match=r"large\.onnx\.\w+\.data is missing"):
        headkit.Predictor(path)
    with pytest.raises(headkit.ExportError, match=r"large\.onnx\.\w+\.data is missing"):
        headkit.graft(path, heads["new"], tmp_path / "third.onnx")


def test_data_that_a_file_does_not_name_is_not_counted(
    heads: dict[str, headkit.Head], merged: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    headkit.graft(merged, heads["new"], path)
    (tmp_path / "model.onnx.data").write_bytes(bytes(1000))
    assert onnx_file.num_bytes(path) == path.stat().st_size


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("folder", ["", "elsewhere"])
def test_backbone_takes_its_weights_along(
    model: nn.Module, heads: dict[str, headkit.Head], external: Path, folder: str, tmp_path: Path
) -> None:
    """The backbone's file has no heads, and their tensors are too small for external data."""
    path, out = copy(external / "backbone.onnx", tmp_path), tmp_path / folder / "model.onnx"
    out.parent.mkdir(exist_ok=True)
    (data,) = data_of(path)
    headkit.graft(path, heads["new"], out)
    data.unlink()
    assert_close(headkit.Predictor(out).logits(X.numpy()), torch_logits(model, heads["new"], X))


@pytest.mark.usefixtures("beside")
def test_new_weights_replace_the_old(
    model: nn.Module,
    heads: dict[str, headkit.Head],
    external: Path,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    path, other = copy(external / "model.onnx", tmp_path), tmp_path / "other.onnx"
    (first,) = data_of(path)
    headkit.graft(path, heads["new"], path, overwrite=True)
    (second,) = data_of(path)
    assert first != second
    assert_close(headkit.Predictor(path).logits(X.numpy()), torch_logits(model, heads["new"], X))
    # Data that carry another model's name are that model's.
    other.write_bytes(path.read_bytes())
    headkit.graft(other, heads["old"], other, overwrite=True)
    assert_close(headkit.Predictor(path).logits(X.numpy()), torch_logits(model, heads["new"], X))
    # A model that fits into one file leaves no data behind.
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 2**30)
    headkit.graft(path, heads["old"], path, overwrite=True)
    assert data_of(path) == []
    assert_close(headkit.Predictor(path).logits(X.numpy()), torch_logits(model, heads["old"], X))


@pytest.mark.usefixtures("beside")
def test_model_in_one_file_replaces_one_with_data(
    model: nn.Module, heads: dict[str, headkit.Head], merged: Path, external: Path, tmp_path: Path
) -> None:
    path = copy(external / "model.onnx", tmp_path)
    headkit.graft(merged, heads["new"], path)
    assert data_of(path) == []
    assert_close(headkit.Predictor(path).logits(X.numpy()), torch_logits(model, heads["new"], X))


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("fails", ["data", "onnx"])
def test_model_and_data_are_replaced_together_or_not_at_all(
    model: nn.Module,
    heads: dict[str, headkit.Head],
    fails: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "model.onnx"
    (tmp_path / "model.onnx.data").mkdir()
    headkit.export(heads["old"], path, backbone=model)
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    replace = Path.replace

    def full(file: Path, target: Path) -> Path:
        if file.suffix == f".{fails}":
            raise OSError(28, "No space left on device")
        return replace(file, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(headkit.OutputError, match="No space left on device"):
        headkit.graft(path, heads["new"], path, overwrite=True)
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


@pytest.mark.usefixtures("beside")
def test_model_written_twice_keeps_its_weights(merged: Path, tmp_path: Path) -> None:
    model = onnx.load(merged)
    weights = {t.name: t.raw_data for t in model.graph.initializer}
    with onnx_file.temporary_model(model, tmp_path / "a.onnx") as first:
        assert onnx_file.num_bytes(first) > sum(map(len, weights.values()))
    onnx_file.write(model, tmp_path / "a.onnx")
    written = onnx.load(tmp_path / "a.onnx")
    for saved in (model, written):
        assert {t.name: t.raw_data for t in saved.graph.initializer} == weights
