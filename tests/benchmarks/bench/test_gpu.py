"""The order of events, streams and copies on a GPU, tested on stand-ins that record the calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from headkit.benchmarks.bench import bench
from headkit.benchmarks.bench.gpu import time_by_events
from headkit.benchmarks.bench.timing import Milliseconds
from headkit.export.runtimes import onnxruntime as onnxruntime_module
from headkit.export.runtimes.inference import LoadedModel, RunConfig


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of calls, which the stand-ins extend."""
    calls: list[str] = []
    names = iter(("start", "end"))

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.name = next(names)

        def record(self) -> None:
            calls.append(f"record {self.name}")

        def synchronize(self) -> None:
            calls.append(f"wait for {self.name}")

        def elapsed_time(self, other: "Event") -> float:
            assert (self.name, other.name) == ("start", "end")
            return 1.5

    @contextmanager
    def stream(which: object) -> Iterator[None]:
        calls.append(f"enter {which}")
        yield
        calls.append("leave")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    return calls


def test_a_call_is_timed_between_events_on_its_stream(calls: list[str]) -> None:
    milliseconds = time_by_events(lambda: calls.append("call"), "S")()
    assert isinstance(milliseconds, Milliseconds)
    assert milliseconds == 1.5
    assert calls == ["enter S", "record start", "call", "record end", "leave", "wait for end"]


def test_the_current_stream_is_the_default(calls: list[str]) -> None:
    assert time_by_events(lambda: calls.append("call"))() == 1.5
    assert calls == ["record start", "call", "record end", "wait for end"]


@pytest.mark.parametrize(("device", "timed"), [("cpu", False), ("cuda", True)])
def test_bench_uses_events_only_on_a_gpu(
    device: str, timed: bool, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LoadedModel(lambda x: x, lambda _: lambda: calls.append("call"), stream="S")
    monkeypatch.setattr(bench._Bench, "_load", lambda *_: model)
    one = bench._Bench(SimpleNamespace(), 1, 1, 0, {})  # type: ignore[arg-type]
    call = one._prepare(RunConfig("torch", "fp32", device, 1), np.zeros((1, 2)))
    assert isinstance(call(), Milliseconds) == timed
    assert ("enter S" in calls) == timed


@pytest.mark.parametrize(
    ("runtime", "provider"), [("onnxruntime", "cuda"), ("tensorrt", "tensorrt")]
)
def test_onnx_runtime_runs_on_the_provider_of_its_row_and_on_torchs_stream(
    runtime: str, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[Any, ...]] = []
    value = SimpleNamespace(name="x")
    session = SimpleNamespace(get_inputs=lambda: [value], get_outputs=lambda: [value])

    def open_session(*arguments: Any) -> Any:
        opened.append(arguments)
        return session

    stream = SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(onnxruntime_module, "open_session", open_session)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    model: Any = SimpleNamespace(onnx=lambda precision: f"{precision}.onnx")
    loaded = onnxruntime_module.load(model, RunConfig(runtime, "fp16", "cuda", 2), 1)
    assert opened == [("fp16.onnx", 2, provider, {"user_compute_stream": "7"})]
    assert loaded.stream is stream
