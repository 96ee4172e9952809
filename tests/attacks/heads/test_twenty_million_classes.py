"""A head file of a few kilobytes that says it has 20 million classes.

At 64f666f, a file without label names was published. Now the number of classes has a bound, and has
to be that of the tensors.
"""

from pathlib import Path

import pytest

import headkit
from tests.attacks.hostile_files import write_head


@pytest.mark.parametrize("names", [None, ["cat", "dog", "fox"]])
def test_classes_without_tensors_are_refused(tmp_path: Path, names: list[str] | None) -> None:
    path = write_head(tmp_path / "x.safetensors", num_classes=20_000_000, label_names=names)
    assert path.stat().st_size < 40_000
    with pytest.raises(headkit.HeadFormatError, match="classes"):
        headkit.Head.load(path)
    with pytest.raises(headkit.HeadkitError):
        headkit.HeadStore(tmp_path / "store").publish(path, "x")
