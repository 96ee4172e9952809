"""Run ``headkit serve`` in a process of its own, and ask it as an honest client does."""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from headkit.adapters.backbone.load import load_backbone
from headkit.adapters.heads.attach import adapt, head_of
from headkit.export.exporter import export
from headkit.registry.store.store import HeadStore

from ..http_client import Connection

ANSWER_SECONDS = 10.0
"""What takes longer is no answer."""


@dataclass
class Server:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def peak_mb(self) -> float:
        """Most memory that the process has taken, in MB (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
        return round(int(kilobytes) * 1024 / 1e6, 1)


@dataclass
class Answers:
    """The answers to requests of one kind: their statuses and durations."""

    statuses: Counter[str] = field(default_factory=Counter)
    milliseconds: list[float] = field(default_factory=list)

    def quantile_ms(self, percent: float) -> float:
        """Return a quantile of the durations."""
        return round(float(np.percentile(self.milliseconds, percent)), 1)

    async def ask(self, connection: Connection, *request: Any) -> str:
        """Send a request, and count its status; that of none is the name of the error."""
        start = time.perf_counter()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                status = str((await connection.request(*request))[0])
        except (OSError, EOFError, TimeoutError) as error:
            status = type(error).__name__
            connection.close()
        self.statuses[status] += 1
        self.milliseconds.append((time.perf_counter() - start) * 1000)
        return status


@contextmanager
def run_server(
    store: str, backbone: Path, log: Path, environment: Mapping[str, str] = {}
) -> Iterator[Server]:
    """Run a server with default settings; yield it once it listens."""
    command = [sys.executable, "-m", "headkit", "serve", store, "--backbone", str(backbone)]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--port", "0"], stdout=file, stderr=file, env={**os.environ, **environment}
        )
    try:
        yield Server(_wait_for_port(log, process), process)
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text()[-2000:]}")
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:  # it waits for the last requests
            process.kill()
            process.wait()


def publish_heads(store: HeadStore, folder: Path, architecture: str, count: int) -> Path:
    """Publish heads that differ as ``head-0``, ``head-1``, …; return their exported backbone."""
    torch.manual_seed(0)
    backbone = load_backbone(architecture, pretrained=False)
    head = head_of(adapt(backbone, 10))
    generator = np.random.default_rng(0)
    for number in range(count):
        tensors = {
            name: generator.normal(size=tensor.shape).astype(np.float32)
            for name, tensor in head.tensors.items()
        }
        store.publish(head.with_changes(tensors=tensors), f"head-{number}")
    return export(backbone, folder / "backbone.onnx", "backbone").path


def draw_photo() -> bytes:
    """Return a JPEG file of 640 x 480 pixels with smooth noise, which compresses like a photo."""
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _wait_for_port(log: Path, process: subprocess.Popen[bytes]) -> int:
    while process.poll() is None:
        found = re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())
        if found:
            return int(found[1])
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
