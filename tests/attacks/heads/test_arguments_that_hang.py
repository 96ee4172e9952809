"""A head file whose model arguments keep the process busy without end.

At 64f666f, the numbers in ``model_args`` went to timm as they were: ``headkit export`` of a head
file with ``"layers": [100000, …]`` built layers until the process was ended. Now a head has bounds
for each number and for all of them together, and refuses the file at once.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.attacks.hostile_files import run_headkit, write_head

SECONDS = 60
"""Even a busy machine refuses a file in less."""


@pytest.mark.parametrize(
    "arguments", [{"layers": [100_000] * 4}, {"layers": [512] * 4, "channels": [8192] * 4}]
)
def test_huge_arguments_are_refused_at_once(tmp_path: Path, arguments: dict[str, Any]) -> None:
    path = write_head(tmp_path / "x.safetensors", model_args=arguments)
    done = run_headkit("export", path, "--out", tmp_path / "x.onnx", seconds=SECONDS)
    assert done.returncode == 2
    assert "model_args" in done.stderr
    assert not (tmp_path / "x.onnx").exists()
