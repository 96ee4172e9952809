"""Clients that keep a server busy. They run in a process of their own.

Run ``python -m headkit.benchmarks.studies.security.attackers PORT SECONDS ADDRESS EDGE SHARE``. The
process prints ``ready``, attacks, and prints how often each kind of connection ended how.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..http_client import encode_form

HALF_OPEN, SLOW_BODIES, UPLOADS = 300, 60, 40
"""Number of hostile connections of each kind."""
HOSTILE = "127.0.0.2"
REFUSED_EDGE = 7000
"""Edge of a square of 49 megapixels."""
Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, str]]


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


async def attack_server(port: int, attack: Attack) -> Counter[str]:
    """Send what hostile clients send; return how often each kind ended how."""
    ended, buffer = Counter[str](), io.BytesIO()
    Image.new("RGB", (attack.edge, attack.edge)).save(buffer, "PNG")
    body, content_type = encode_form(buffer.getvalue(), ["head-0"])
    post = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
    start = f"{post}Content-Length: {len(body)}\r\n\r\n".encode()

    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    end = loop.time() + attack.seconds

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
