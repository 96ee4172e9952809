"""A head file of 400 MB that takes 4 kB on the disk, as the file is sparse.

At 64f666f, ``headkit info`` accepted and loaded its int8 tensor. Now the type of each tensor is
checked before any of them is read.
"""

from pathlib import Path

import pytest

import headkit
from tests.attacks.hostile_files import write_raw_head

ROWS, COLUMNS = 3, 133 * 2**20
PROGRAM = """
import resource, sys
import headkit
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    headkit.info(sys.argv[1])
except headkit.HeadkitError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_sparse_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    assert resource
    import subprocess
    import sys

    end = ROWS * COLUMNS
    header = {"fc.weight": {"dtype": "I8", "shape": [ROWS, COLUMNS], "data_offsets": [0, end]}}
    path = write_raw_head(tmp_path / "x.safetensors", header, b"", num_features=COLUMNS)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + end)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path], capture_output=True, text=True, check=True
    )
    message, megabytes = done.stdout.splitlines()
    assert "I8" in message
    assert int(megabytes) < 100
    with pytest.raises(headkit.HeadFormatError):
        headkit.Head.load(path)
