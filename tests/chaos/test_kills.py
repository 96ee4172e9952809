"""A short run of the study of kills, and what killed writers leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headkit.adapters.files import atomic_path, write_atomically
from headkit.adapters.temporary import remove_abandoned, temporary_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes fork")

STUDY = """
import json, sys
from pathlib import Path
from headkit.benchmarks.studies.security.kills.slices import GROUPS, run_slice

kills = {"publish": 5, "gc": 5, "tag": 1, "yank": 1}
print(json.dumps(run_slice(Path(sys.argv[1]).resolve(), GROUPS["store"], kills, seed=1)))
"""

WRITER = """
import sys, time
from headkit.adapters.files import atomic_path

with atomic_path(sys.argv[1]) as path:
    path.write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_killed_writers_of_a_store_lose_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUDY, str(tmp_path)], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert sum(result["kills"].values()) == 12
    assert result["acknowledged"] > 0
    found = {key: result[key] for key in ("lost", "torn", "gaps", "problems", "errors")}
    assert found == {key: [] for key in found}
    assert result["temporary"]["after_the_next_write"] == 0


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    target = tmp_path / "head.safetensors"
    target.write_bytes(b"old")
    other = tmp_path / ".notes.0123456789ab.txt"
    other.write_bytes(b"a file of the user's own")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        write_atomically(target, b"new")
        assert len(list(tmp_path.glob(".head.*"))) == 1  # it is in use
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    write_atomically(target, b"newer")
    assert sorted(tmp_path.iterdir()) == [other, target]
    assert target.read_bytes() == b"newer"


def test_folders_and_files_in_use_stay(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.bin") as path, temporary_folder(tmp_path / "b.onnx") as folder:
        path.write_bytes(b"new")
        (folder / "c").write_bytes(b"c")
        assert remove_abandoned(tmp_path) == 0
        assert path.exists()
        assert folder.exists()
    left = tmp_path / ".b.onnx.0123456789ab"
    left.mkdir()
    (left / "c").write_bytes(b"c")
    assert remove_abandoned(tmp_path) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["a.bin"]
    assert time.time() - (tmp_path / "a.bin").stat().st_mtime < 60
