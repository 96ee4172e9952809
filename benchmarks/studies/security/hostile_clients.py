"""Measure a server that honest and hostile clients use at the same time."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from headkit.registry.store.store import HeadStore

from ..http_client import Connection, encode_form
from .server_process import Answers, Server, draw_photo, publish_heads, run_server

HALF_OPEN, SLOW_BODIES, UPLOADS = 300, 60, 40
"""Number of hostile connections of each kind."""
REFUSED_EDGE, DECODED_EDGE = 7000, 4990
"""Edges of a square of 49 megapixels, and of one that is just small enough to be decoded."""
Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, str]]
HONEST, HOSTILE = "127.0.0.1", "127.0.0.2"


@dataclass(frozen=True)
class Attack:
    """Who attacks, and from where.

    Attributes:
        seconds: Duration.
        address: Local address of the hostile clients.
        edge: Edge in pixels of the square images that they upload.
        share: Share of the hostile connections that are opened.
    """

    seconds: float
    address: str = HOSTILE
    edge: int = REFUSED_EDGE
    share: float = 1.0


def measure(
    folder: Path, *, architecture: str = "resnet18", seconds: float = 60.0, share: float = 1.0
) -> dict[str, Any]:
    """Let hostile clients disturb an honest one, three times with a new server.

    The hostile clients have the same address as the honest one, as behind a proxy; then another
    address; then the same address again, with images that are small enough to be decoded. The
    honest client sends one request after another. Only a response with the status 200 within
    ``ANSWER_SECONDS`` counts as an answer.

    Returns:
        The figures of the first time; those of the others below ``other_address`` and
        ``decoded_images``.
    """
    store = HeadStore(folder / "store")
    backbone = publish_heads(store, folder, architecture, 3)
    attacks = {
        "same_address": Attack(seconds, HONEST, share=share),
        "other_address": Attack(seconds, share=share),
        "decoded_images": Attack(seconds, HONEST, DECODED_EDGE, share),
    }
    results = {}
    for name, attack in attacks.items():
        with run_server(store.url, backbone, folder / f"{name}.log") as server:
            results[name] = _run(server, attack)
    return {**results.pop("same_address"), **results}


def _run(server: Server, attack: Attack) -> dict[str, Any]:
    command = [sys.executable, "-m", __spec__.name, str(server.port), str(attack.seconds)]
    command += [attack.address, str(attack.edge), str(attack.share)]
    quiet = asyncio.run(_ask(server.port, attack.seconds / 10))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hostile:
        honest = asyncio.run(_ask(server.port, attack.seconds))
        done, _ = hostile.communicate(timeout=60)
    if hostile.returncode:
        raise RuntimeError("the hostile clients failed")
    requests = honest.statuses.total()
    return {
        "seconds": round(attack.seconds),
        "half_open": round(HALF_OPEN * attack.share),
        "slow_bodies": round(SLOW_BODIES * attack.share),
        "uploads": round(UPLOADS * attack.share),
        "megapixels": round(attack.edge**2 / 1e6, 1),
        "honest_requests": requests,
        "honest_answers": honest.statuses["200"],
        "honest_share": round(honest.statuses["200"] / requests, 4),
        "honest_statuses": dict(honest.statuses),
        "honest_p99_ms": honest.quantile_ms(99),
        "quiet_p99_ms": quiet.quantile_ms(99),
        "hostile_statuses": done.strip(),
        "peak_mb": server.peak_mb,
    }


async def _ask(port: int, seconds: float) -> Answers:
    answers, end, image = Answers(), time.perf_counter() + seconds, draw_photo()
    connection = Connection("127.0.0.1", port)
    while time.perf_counter() < end:
        await answers.ask(connection, "POST", "/predict", *encode_form(image, ["head-0"]))
    connection.close()
    return answers


async def attack_server(port: int, attack: Attack) -> Counter[str]:
    """Send what hostile clients send; return how often each kind ended how."""
    loop, ended = asyncio.get_running_loop(), Counter[str]()
    end = loop.time() + attack.seconds
    buffer = io.BytesIO()
    Image.new("RGB", (attack.edge, attack.edge)).save(buffer, "PNG")
    body, content_type = encode_form(buffer.getvalue(), ["head-0"])
    post = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
    start = f"{post}Content-Length: {len(body)}\r\n\r\n".encode()

    async def half_open(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        writer.write(b"POST /predict HTTP/1.1\r\nHost: ")
        return _status(await reader.read(1000))

    async def slow_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        writer.write(start)
        answer = asyncio.ensure_future(reader.read(1000))
        for byte in body:
            writer.write(bytes([byte]))
            done, _ = await asyncio.wait({answer}, timeout=1.0)
            if done:
                break
        return _status(await answer)

    async def upload(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        writer.write(start + body)
        return _status(await reader.read(1000))

    async def again_and_again(name: str, client: Client) -> None:
        while loop.time() < end:
            result = "closed"
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, local_addr=(attack.address, 0)
                )
                try:
                    async with asyncio.timeout_at(end):
                        result = await client(reader, writer)
                except TimeoutError:
                    result = "open at the end"
                finally:
                    writer.close()
            ended[f"{name}: {result}"] += 1
            if result == "closed":
                await asyncio.sleep(0.05)

    clients = [("half-open", half_open)] * round(HALF_OPEN * attack.share)
    clients += [("slow body", slow_body)] * round(SLOW_BODIES * attack.share)
    clients += [("upload", upload)] * round(UPLOADS * attack.share)
    await asyncio.gather(*(again_and_again(*client) for client in clients))
    return ended


def _status(answer: bytes) -> str:
    return answer[9:12].decode("latin-1") or "closed"


if __name__ == "__main__":
    port, seconds, address, edge, share = sys.argv[1:]
    attacks = Attack(float(seconds), address, int(edge), float(share))
    found = asyncio.run(attack_server(int(port), attacks))
    print(", ".join(f"{name} {count:,}" for name, count in sorted(found.items())))
