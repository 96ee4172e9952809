from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headkit


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def new(heads: dict[str, headkit.Head], scratch: Path) -> Path:
    return heads["new"].save(scratch / "new.safetensors")


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1), flips=st.integers(0, 3), seed=st.integers(0, 10**6))
def test_damaged_files_are_errors_and_never_crashes(
    merged: Path, scratch: Path, new: Path, cut: float, flips: int, seed: int
) -> None:
    """A truncated file is always an error; see ``test_checksums`` for flipped bits."""
    generator = np.random.default_rng(seed)
    whole = merged.read_bytes()
    content = bytearray(whole[: int(cut * len(whole))])
    for at in generator.integers(0, max(len(content), 1), flips if content else 0):
        content[at] ^= 1 << int(generator.integers(8))
    (scratch / "bad.onnx").write_bytes(bytes(content))
    try:
        headkit.graft(scratch / "bad.onnx", new, scratch / "out.onnx")
        grafted = True
    except headkit.HeadkitError:
        grafted = False
    assert not (grafted and len(content) < len(whole))
