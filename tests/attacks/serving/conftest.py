"""A server that all attacks use, one after another."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

import headkit

from .server import SECONDS, Server


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that all attacks use, one after another."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    folder = tmp_path_factory.mktemp("serving")
    store = headkit.HeadStore(folder / "store")
    model = headkit.adapt("test_resnet", 3, pretrained=False)
    for name in ("cat", "dog"):
        path = folder / f"{name}.safetensors"
        headkit.save_head(model, path, label_names=[name, "b", "c"], notes=name)
        store.publish(path, name)
    headkit.export(model, folder / "backbone.onnx", "backbone")
    command = [sys.executable, "-m", "headkit", "serve", str(folder / "store"), "--port", "0"]
    command += ["--backbone", str(folder / "backbone.onnx")]
    log = folder / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    deadline = time.monotonic() + 2 * SECONDS
    while not (found := re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()  # noqa: PT018
        time.sleep(0.05)
    try:
        one = Server(int(found[1]), process, store, folder)
        one.seconds("cat", "dog")
        yield one
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def background() -> Iterator[list[threading.Thread]]:
    """Threads that are waited for."""
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join(SECONDS)
