"""Requests whose bodies arrive a byte at a time.

At 64f666f, each of them took a place of those that wait for the backbone, so that a few of them
stopped a server of five places for half a minute. Now a request takes a place once its body has
arrived, and of bodies that take too much memory the largest one gives way.
"""

from contextlib import ExitStack

from .server import SECONDS, Server, photo

HEADERS = (
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    b"Content-Length: %d\r\n\r\n"
)


def test_slow_bodies_take_no_place(server: Server) -> None:
    import re
    import subprocess
    import sys
    import time

    command = [sys.executable, "-m", "headkit", "serve", str(server.folder / "store"), "--port"]
    command += ["0", "--backbone", str(server.folder / "backbone.onnx"), "--max-waiting", "5"]
    log = server.folder / "slow.log"
    with log.open("w") as file, ExitStack() as stack:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        stack.callback(process.wait)
        stack.callback(process.kill)
        deadline = time.monotonic() + 2 * SECONDS
        while not (found := re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        other = Server(int(found[1]), process, server.store, server.folder)
        sockets = [stack.enter_context(other.connect()) for _ in range(20)]
        for one in sockets:
            one.sendall(HEADERS % 100_000 + b"--x")
        time.sleep(0.5)
        status, answer = other.predict(photo(), "cat")
        assert status == 200, answer
