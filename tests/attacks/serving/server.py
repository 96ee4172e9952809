"""A server for the attacks: the real command, in a process of its own."""

import asyncio
import io
import re
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import headkit
from headkit.benchmarks.studies.http_client import Connection, encode_form

SECONDS = 60
"""What takes longer hangs. Even a busy machine answers in less."""


@dataclass
class Server:
    """A running server with the heads ``cat`` and ``dog``."""

    port: int
    process: subprocess.Popen[bytes]
    store: headkit.HeadStore
    folder: Path

    def ask(self, *request: Any) -> tuple[int, Any]:
        """Send a request; return the status and the body of its response."""

        async def run() -> tuple[int, Any]:
            connection = Connection("127.0.0.1", self.port)
            try:
                async with asyncio.timeout(SECONDS):
                    return await connection.request(*request)
            finally:
                connection.close()

        return asyncio.run(run())

    def predict(self, image: bytes, *heads: str) -> tuple[int, Any]:
        """Ask for predictions by some heads."""
        return self.ask("POST", "/predict", *encode_form(image, heads))

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)

    def seconds(self, *heads: str) -> float:
        """Return how long an honest client waits for an answer."""
        start = time.monotonic()
        status, answer = self.predict(photo(), *(heads or ["cat"]))
        assert status == 200, answer
        return time.monotonic() - start

    @property
    def megabytes(self) -> float:
        """Most memory that the server has taken."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1000


def photo(size: tuple[int, int] = (60, 80)) -> bytes:
    """Return a small image file."""
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def solid(edge: int, kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """Return a small file of a large square image of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, (edge, edge)).save(buffer, kind, **options)
    return buffer.getvalue()
