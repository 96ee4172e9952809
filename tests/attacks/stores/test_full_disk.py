"""A disk that is full while headkit writes. The limit of a file's size stands for it.

At 64f666f, ``fit`` ended with a traceback of sqlite when its cache could not grow. Now the message
says what could not be written, and a head file that was there before stays as it is.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

pytest.importorskip("resource")
PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = ["headkit", *sys.argv[2:]]
from headkit.__main__ import main
main()
"""


@pytest.mark.parametrize("limit", [100, 5000, 20_000])
def test_message_says_what_could_not_be_written(tmp_path: Path, limit: int) -> None:
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(40):
            pixels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    out = tmp_path / "x.safetensors"
    out.write_bytes(b"what was there before")
    command = [sys.executable, "-c", PROGRAM, str(limit), "fit", "--backbone", "test_resnet"]
    command += ["--weights", str(weights), "--data", str(tmp_path / "data"), "--out", str(out)]
    command += ["--cache", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert out.read_bytes() == b"what was there before"
    else:
        assert out.read_bytes() != b"what was there before"
