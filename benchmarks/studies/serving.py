"""Measure a server with many heads on one backbone: many clients, and all heads for one image.

Run ``python -m headkit.benchmarks.studies.serving [SECTION …]`` with the sections ``clients`` and
``heads``; the default is both. It writes ``benchmarks/results/serving.json`` after each section and
keeps the other section, so that an interrupted run can continue with the remaining one. Needs
``headkit[serve]``.
"""

from __future__ import annotations

import asyncio
import io
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from headkit.adapters.backbone.load import load_backbone
from headkit.adapters.heads.attach import adapt, head_of
from headkit.adapters.heads.head import Head
from headkit.benchmarks.bench.timing import alternate
from headkit.export.exporter import export
from headkit.export.graph.graft import graft
from headkit.export.predict.predictor import Predictor
from headkit.registry.store.store import HeadStore

from .http_client import Connection, encode_form
from .sections import run_sections

RESULT = Path(__file__).parents[1] / "results" / "serving.json"
BACKBONE, CLASSES, HEADS = "resnet18", 10, 100
CLIENTS, SECONDS = 200, 60.0
CALLS = 9


def clients(folder: Path) -> dict[str, Any]:
    """Measure clients that send requests without pause to random heads, then send bad requests."""
    _publish(folder)
    images = [_draw_image(seed) for seed in range(16)]
    with _server(folder) as port:
        one_client = asyncio.run(_send_requests(port, images, 1, 5.0))
        crowd = asyncio.run(_send_requests(port, images, CLIENTS, SECONDS))
        bad = asyncio.run(_send_bad_requests(port, images[0]))
        after = asyncio.run(_send_requests(port, images, 1, 2.0))
    return {
        "architecture": BACKBONE,
        "heads": HEADS,
        "one_client": one_client,
        "clients": CLIENTS,
        "crowd": crowd,
        "misbehaviour": bad,
        "afterwards": after,
    }


def heads(folder: Path) -> dict[str, Any]:
    """Time one image with all heads: in one request, and in one session per head."""
    files = _publish(folder)
    first, predictors = Head.load(files[0]), []
    merged = folder / "merged.onnx"
    export(first, merged, backbone=_backbone())
    for file in files:
        path = folder / f"{file.stem}.onnx"
        graft(merged, Head.load(file), path)
        predictors.append(Predictor(path))
        path.unlink()
    image = _draw_image(0)
    body = encode_form(image, ["*"])

    def one_by_one() -> list[str]:
        pixels = predictors[0].preprocess(Image.open(io.BytesIO(image)))[None]
        return [
            predictor.info.head().label_names[int(predictor.logits(pixels)[0].argmax())]
            for predictor in predictors
        ]

    with _server(folder) as port:
        loop = asyncio.new_event_loop()
        connection = Connection("127.0.0.1", port)

        def at_once() -> list[str]:
            status, answers = loop.run_until_complete(connection.request("POST", "/predict", *body))
            if status != 200:
                raise RuntimeError(f"the server answered with status {status}: {answers}")
            return [answers[file.stem]["predictions"][0]["label"] for file in files]

        same = one_by_one() == at_once()
        run = alternate({"one request": at_once, "sessions": one_by_one}, calls=CALLS)
        connection.close()
        loop.close()
    return {
        "architecture": BACKBONE,
        "heads": HEADS,
        "same_labels": same,
        "ms": {name: timing.to_json() for name, timing in run.timings.items()},
        "ratio": run.ratio("sessions", "one request").to_json(),
    }


async def _send_requests(
    port: int, images: list[bytes], count: int, seconds: float
) -> dict[str, Any]:
    """Send requests from ``count`` clients for ``seconds``; return statuses and latencies."""
    statuses, milliseconds = Counter[str](), list[float]()
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        connection, choose = Connection("127.0.0.1", port), random.Random(number)  # noqa: S311
        while time.perf_counter() < end:
            body = encode_form(choose.choice(images), [f"head-{choose.randrange(HEADS):03}"])
            start = time.perf_counter()
            try:
                status, _ = await connection.request("POST", "/predict", *body)
                statuses[str(status)] += 1
            except (OSError, asyncio.IncompleteReadError) as error:
                statuses[type(error).__name__] += 1
                connection.close()
            milliseconds.append((time.perf_counter() - start) * 1000)
        connection.close()

    await asyncio.gather(*map(client, range(count)))
    answered = sum(statuses.values())
    quantiles = np.percentile(milliseconds, [50, 95, 99])
    return {
        "seconds": seconds,
        "statuses": dict(statuses),
        "requests_per_second": round(answered / seconds, 1),
        "latency_ms": dict(zip(("p50", "p95", "p99"), quantiles.round(1).tolist(), strict=True)),
    }


async def _send_bad_requests(port: int, image: bytes) -> dict[str, int]:
    """Send bad requests; return their statuses, 0 for a closed connection."""
    black = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(black, "PNG")
    requests = {
        "not an image": (b"not an image", "head-000"),
        "unknown head": (image, "no-such-head"),
        "100 megapixels": (black.getvalue(), "head-000"),
        "30 MB": (bytes(30_000_000), "head-000"),
    }
    statuses = {}
    for what, (content, head) in requests.items():
        connection, form = Connection("127.0.0.1", port), encode_form(content, [head])
        try:
            statuses[what], _ = await connection.request("POST", "/predict", *form)
        except (OSError, asyncio.IncompleteReadError):
            statuses[what] = 0
        connection.close()
    body, kind = encode_form(image, ["head-000"])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    start = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
    writer.write(f"{start}Content-Length: {len(body)}\r\n\r\n".encode() + body[:1000])
    await writer.drain()
    writer.close()
    return {**statuses, "dropped connection": 0}


def _publish(folder: Path) -> list[Path]:
    """Publish heads in a new store and export their backbone; return the head files."""
    store, files = HeadStore(folder / "store"), []
    first = head_of(adapt(_backbone(), CLASSES))
    generator = np.random.default_rng(0)
    for number in range(HEADS):
        tensors = {
            name: generator.normal(size=tensor.shape).astype(np.float32)
            for name, tensor in first.tensors.items()
        }
        path = folder / f"head-{number:03}.safetensors"
        first.with_changes(tensors=tensors).save(path)
        store.publish(path, path.stem)
        files.append(path)
    export(_backbone(), folder / "backbone.onnx", "backbone")
    return files


@contextmanager
def _server(folder: Path) -> Iterator[int]:
    """Run ``headkit serve`` in a new process; yield its port."""
    command = [sys.executable, "-m", "headkit", "serve", str(folder / "store")]
    command += ["--backbone", str(folder / "backbone.onnx"), "--port", "0"]
    log = folder / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        yield _wait_for_port(log, process)
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text()}")
    finally:
        process.terminate()
        process.wait(30)


def _wait_for_port(log: Path, process: subprocess.Popen[bytes]) -> int:
    while process.poll() is None:
        for line in log.read_text().splitlines():
            if "running on" in line:
                return int(line.partition("http://127.0.0.1:")[2].split()[0])
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text()}")


def _draw_image(seed: int) -> bytes:
    """Return a JPEG file of 640 x 480 pixels with smooth noise, which compresses like a photo."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _backbone() -> Any:
    torch.manual_seed(0)
    return load_backbone(BACKBONE, pretrained=False)


SECTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {"clients": clients, "heads": heads}

if __name__ == "__main__":
    run_sections(__doc__, RESULT, SECTIONS)
