"""Exporting in one thread leaves the output and the logging of other threads alone."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import logging, sys, threading, warnings
import numpy as np
import headkit
from tests.backbones import random_backbone

rng = np.random.default_rng(0)
images = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(32)]
before = list(warnings.filters), sys.stdout, sys.stderr
failed = []

def work():
    try:
        model = headkit.adapt(random_backbone(), 3, kind="mlp")
        for precision in ("int8", "fp16"):
            headkit.export(
                model, f"{sys.argv[1]}/{precision}.onnx", precision=precision, images=images,
                max_cost=1,
            )
    except BaseException as error:
        failed.append(error)

thread = threading.Thread(target=work)
thread.start()
log = logging.getLogger("another library")
count = 0
while thread.is_alive():
    print(f"printed {count}")
    log.warning("logged %d", count)
    assert sys.stdout is before[1] and sys.stderr is before[2]
    assert logging.root.handlers == [] and logging.root.manager.disable == 0
    count += 1
    thread.join(0.01)
assert not failed, failed
assert list(warnings.filters) == before[0]
print("count", count)
"""


def test_output_and_logging_of_other_threads_are_left_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *printed, last = done.stdout.splitlines()
    count = int(last.removeprefix("count "))
    assert count > 20
    assert printed == [f"printed {number}" for number in range(count)]
    logged = [line for line in done.stderr.splitlines() if line.startswith("logged ")]
    assert logged == [f"logged {number}" for number in range(count)]
