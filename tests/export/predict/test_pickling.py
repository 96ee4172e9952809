"""A predictor travels to other processes and works there as it does here."""

import copy
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headkit
from tests.fixtures import HEADS, IMAGES, MODELS

PATHS = sorted(IMAGES.rglob("*.png"))[:4]


def test_a_spawn_pool_takes_a_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    # A relative path, and a head of another name: the workers need both.
    monkeypatch.chdir(MODELS)
    heads = {"own": HEADS / "resnet_own.safetensors"}
    predictor = headkit.Predictor("resnet_swappable.onnx", heads, threads=1)
    expected = [predictor(path) for path in PATHS]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(predictor, PATHS, chunksize=2) == expected
        found = pool.apply(predictor.predict, (PATHS, ["own"]))
    assert found == predictor.predict(PATHS, ["own"])


def test_a_copy_keeps_model_heads_and_options(tmp_path: Path) -> None:
    adapter = tmp_path / "tags.onnx_adapter"
    own = headkit.Head.load(HEADS / "resnet_own.safetensors")
    headkit.graft(MODELS / "resnet_swappable.onnx", own, adapter)
    heads: Any = {"file": HEADS / "resnet_own.safetensors", "head": own, "adapter": adapter}
    model = (MODELS / "resnet_swappable.onnx").read_bytes()
    predictor = headkit.Predictor(
        model, heads, provider=["CPUExecutionProvider"], provider_options=[{}], threads=1
    )
    features = predictor.features(PATHS)
    for again in (pickle.loads(pickle.dumps(predictor)), copy.deepcopy(predictor)):  # noqa: S301
        assert again.session is not predictor.session
        assert again.session.get_session_options().intra_op_num_threads == 1
        assert repr(again) == repr(predictor)
        assert again.heads == ["", "file", "head", "adapter"]
        assert again.predict(PATHS) == predictor.predict(PATHS)
        assert np.array_equal(again.features(PATHS), features)


@pytest.mark.parametrize("name", ["resnet_multi", "resnet_raw", "resnet_backbone"])
def test_every_form_of_a_model_can_be_pickled(name: str) -> None:
    predictor = headkit.Predictor(MODELS / f"{name}.onnx")
    again = pickle.loads(pickle.dumps(predictor))  # noqa: S301
    assert again.info == predictor.info
    assert np.array_equal(again.features(PATHS), predictor.features(PATHS))


def test_a_model_that_changed_in_the_meantime_is_an_error(tmp_path: Path) -> None:
    """Otherwise a worker could give the labels of another head."""
    path = tmp_path / "model.onnx"
    shutil.copy(MODELS / "resnet_merged.onnx", path)
    predictor = headkit.Predictor(path)
    pickled = pickle.dumps(predictor)
    os.replace(shutil.copy(MODELS / "grafted.onnx", tmp_path / "new.onnx"), path)  # noqa: PTH105
    with pytest.raises(headkit.ExportError, match=r"model\.onnx is not the model that"):
        pickle.loads(pickled)  # noqa: S301
    with pytest.raises(headkit.ExportError, match="create a new predictor"):
        predictor.features(PATHS)
    path.unlink()
    with pytest.raises(headkit.ExportError, match="no such file"):
        pickle.loads(pickled)  # noqa: S301
    adapter = tmp_path / "own.onnx_adapter"
    swappable = MODELS / "resnet_swappable.onnx"
    headkit.graft(swappable, HEADS / "resnet_own.safetensors", adapter)
    pickled = pickle.dumps(headkit.Predictor(swappable, {"own": adapter}))
    adapter.unlink()
    with pytest.raises(headkit.ExportError, match=r"cannot read adapter .*own\.onnx_adapter"):
        pickle.loads(pickled)  # noqa: S301
