import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headkit
from headkit.benchmarks.bench.process import resident_bytes, run_in_process
from headkit.benchmarks.pages import plots, render
from headkit.benchmarks.pages.benchmarks import select_latencies
from tests.backbones import active_backbone


def test_plots_of_the_page_are_drawn_from_the_committed_results(tmp_path: Path) -> None:
    paths = plots.draw(render.RESULTS, tmp_path)
    assert {path.name for path in paths} == {path.name for path in render.PLOTS.glob("*.png")}
    for path in paths:
        with Image.open(path) as plot, Image.open(render.PLOTS / path.name) as committed:
            assert np.asarray(plot.convert("L")).std() > 5
            assert plot.size == committed.size


def test_dots_of_the_peers_are_the_measured_ratios() -> None:
    result = json.loads((render.RESULTS / "peers.json").read_text())
    figure = plots._peers(result)
    for ax, batch in zip(figure.axes, ("1", "16"), strict=True):
        shown = [float(dot.lines[0].get_xdata()[0]) for dot in ax.containers]
        assert shown == [
            ratio["value"]
            for section in select_latencies(result).values()
            for ratio in section["batches"][batch]["ratios"].values()
        ]


def test_memory_of_heads_is_measured_with_their_session(tmp_path: Path) -> None:
    if resident_bytes() is None:
        pytest.skip("the system does not report it")
    model = headkit.adapt(active_backbone(), 1000)
    for number in range(20):
        headkit.save_head(model, tmp_path / f"{number:02}.safetensors")
    head = headkit.Head.load(tmp_path / "00.safetensors")
    path = headkit.export(head, tmp_path / "model.onnx", "swappable", backbone=model).path
    found = run_in_process("headkit.benchmarks.studies.growth", "one", str(path), "20")
    size = sum(tensor.nbytes for tensor in head.tensors.values())
    assert found["memory_bytes"] > 20 * size
    assert found["load_seconds"] > 0
