"""The table of runtimes: a new runtime is one module and one row."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest

import headkit
from headkit.export.runtimes import table
from headkit.export.runtimes import torch as torch_module
from headkit.export.runtimes.choose import choose_runtime
from headkit.export.runtimes.inference import InferenceModel, LoadedModel, RunConfig
from headkit.export.runtimes.table import DEVICES, PRECISIONS, RUNTIMES, RuntimeRow, providers
from headkit.export.runtimes.threads import restore_threads
from tests.backbones import SMALL, active_backbone, random_backbone


def test_reading_the_table_imports_no_runtime() -> None:
    program = (
        "import sys; from headkit.export.runtimes.table import RUNTIMES, providers; providers();"
        "print(sorted({'torch', 'timm', 'onnxruntime', 'openvino', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_predictor_takes_the_providers_of_the_table() -> None:
    assert list(providers()) == ["cpu", "cuda", "tensorrt", "openvino"]
    assert RUNTIMES["onnxruntime"].provider_on("cuda") == "cuda"
    assert RUNTIMES["tensorrt"].provider_on("cuda") == "tensorrt"
    assert RUNTIMES["torch"].provider_on("cuda") == ""


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_module_of_a_row_computes_logits_and_features(name: str, tmp_path: Path) -> None:
    row = RUNTIMES[name]
    if find_spec(row.module) is None:
        pytest.skip(f"{row.module} is not installed")
    assert set(row.inference) <= set(DEVICES)
    assert all(set(some) <= set(PRECISIONS) for some in row.inference.values())
    module = row.load_module()
    if row.extraction:
        runtime = module.extraction_runtime("fp32", 1)
        assert (runtime.name, runtime.precision, runtime.threads) == (name, "fp32", 1)
        assert choose_runtime(name, "fp32", random_backbone()).name == name
    if "cpu" not in row.inference or name == "torch.compile":
        return
    model = _Model(tmp_path)
    with restore_threads():
        loaded = module.load(model, RunConfig(name, "fp32", "cpu", 1), 2)
    x = np.random.default_rng(0).normal(size=(2, *model.input_size)).astype(np.float32)
    expected = headkit.Predictor(model.onnx()).logits(x)
    assert np.abs(loaded.run(x) - expected).max() < 1e-4 * np.abs(expected).max()
    loaded.bind(x)()


class _Model:
    """A model in all forms that runtimes load."""

    input_size = (3, 160, 160)

    def __init__(self, folder: Path) -> None:
        self._model, self._folder = headkit.adapt(active_backbone(), 3), folder

    def module(self) -> Any:
        return self._model

    def onnx(self, precision: str = "fp32", *, optimized: bool = True) -> Path:
        path = self._folder / f"{precision}-{optimized}.onnx"
        return headkit.export(self._model, path, precision=precision, optimize=optimized).path


def test_a_module_and_a_row_add_a_runtime(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[RunConfig] = []

    def load(model: InferenceModel, config: RunConfig, batch_size: int) -> LoadedModel:
        loads.append(config)
        return torch_module.load(model, config, batch_size)

    def extraction_runtime(precision: Any, threads: int | None) -> Any:
        return torch_module.TorchRuntime(precision, threads, name="mine")

    module = ModuleType("mine")
    vars(module).update(load=load, extraction_runtime=extraction_runtime)
    monkeypatch.setitem(sys.modules, "mine", module)
    row = RuntimeRow(
        "mine",
        module="numpy",
        package="mine",
        takes="module",
        inference={"cpu": ("fp32",)},
        extraction={"cpu": ("fp32",)},
    )
    monkeypatch.setitem(cast("dict[str, RuntimeRow]", table.RUNTIMES), "mine", row)

    headkit.fit(random_backbone(), shapes, cache=tmp_path, workers=0, runtime="mine")
    (key,) = tmp_path.glob("features/*/key.json")
    assert '"name":"mine"' in key.read_text().replace(" ", "")
    measured = headkit.bench(
        [SMALL],
        runtimes=["mine"],
        batches=[1],
        devices=["cpu"],
        repeats=1,
        rounds=1,
        cold_starts=0,
    )
    assert [one["runtime"] for one in measured["rows"]] == ["mine"]
    assert {one.runtime for one in loads} == {"mine"}
