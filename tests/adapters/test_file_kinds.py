"""An output of a command is of the right kind, and is none of its inputs."""

from pathlib import Path

import pytest

from headkit.adapters.errors import OutputError
from headkit.adapters.file_kinds import HEAD, check_output


def test_an_input_is_not_replaced(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"tensors")
    link = tmp_path / "link.safetensors"
    link.symlink_to(weights)
    inputs = (None, "resnet18", weights)
    for path in (weights, link, str(weights)):
        with pytest.raises(OutputError, match="it is also an input; choose another path"):
            check_output(path, HEAD, inputs=inputs)
    assert check_output(tmp_path / "head.safetensors", HEAD, inputs=inputs)
    assert weights.read_bytes() == b"tensors"
