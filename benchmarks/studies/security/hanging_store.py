"""Measure a server whose store hangs and recovers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from headkit.registry.store.store import HeadStore

from ..http_client import Connection, encode_form
from ..s3_server import BUCKET, s3_server
from .hanging_proxy import HangingProxy, hanging_proxy
from .server_process import Answers, Server, draw_photo, publish_heads, run_server

IN_MEMORY, HEADS = 5, 200
"""Number of heads that are in memory before the store hangs, and of all heads."""
STORE = f"s3://{BUCKET}/store"


def measure(
    folder: Path, *, architecture: str = "resnet18", usual: float = 30.0, hanging: float = 60.0
) -> dict[str, Any]:
    """Ask a server for ``usual`` seconds, and while its store hangs for ``hanging`` seconds.

    The same clients ask in both phases: for heads in memory, for all heads in memory at once, for
    heads that are not in memory, and for what the other routes give.

    Returns:
        ``usual_p99_ms`` and ``p99_ms`` of requests for heads in memory; the longest responses of
        ``/healthz`` and ``/heads`` while the store hangs; seconds from the end of that until a head
        that was not in memory is answered; the statuses of each kind of request.
    """
    with s3_server(threaded=True) as environment:
        with mock.patch.dict(os.environ, environment):
            backbone = publish_heads(HeadStore(STORE), folder, architecture, HEADS)
        moto = int(environment["AWS_ENDPOINT_URL"].rpartition(":")[2])
        with hanging_proxy(moto) as proxy:
            through = {**environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
            with run_server(STORE, backbone, folder / "server.log", through) as server:
                return asyncio.run(_measure(server, proxy, usual, hanging))


async def _measure(
    server: Server, proxy: HangingProxy, usual: float, hanging: float
) -> dict[str, Any]:
    image, unknown = draw_photo(), iter(range(IN_MEMORY, HEADS))
    connection, warm_up = Connection("127.0.0.1", server.port), Answers()
    for _ in range(3):
        for number in range(IN_MEMORY):
            form = encode_form(image, [f"head-{number}"])
            await warm_up.ask(connection, "POST", "/predict", *form)
    usually = await _ask_everything(server.port, image, unknown, usual)
    proxy.hang()
    meanwhile = await _ask_everything(server.port, image, unknown, hanging)
    proxy.recover()
    recovered = await _seconds_until_answered(connection, image, HEADS - 1)
    connection.close()
    return {
        "seconds_hanging": round(hanging),
        "usual_p99_ms": usually["in memory"].quantile_ms(99),
        "p99_ms": meanwhile["in memory"].quantile_ms(99),
        "healthz_max_ms": meanwhile["/healthz"].quantile_ms(100),
        "heads_max_ms": meanwhile["/heads"].quantile_ms(100),
        "recovery_seconds": recovered,
        "statuses_usually": {name: dict(one.statuses) for name, one in usually.items()},
        "statuses": {name: dict(one.statuses) for name, one in meanwhile.items()},
        "peak_mb": server.peak_mb,
    }


async def _ask_everything(
    port: int, image: bytes, unknown: Any, seconds: float
) -> dict[str, Answers]:
    """Send requests of each kind for some seconds."""
    names, end = [f"head-{number}" for number in range(IN_MEMORY)], time.perf_counter() + seconds
    kinds: dict[str, tuple[float, Callable[[int], tuple[Any, ...]]]] = {
        "in memory": (0.0, lambda n: ("POST", "/predict", *encode_form(image, [names[n % 5]]))),
        "several in memory": (0.5, lambda _: ("POST", "/predict", *encode_form(image, names))),
        "not in memory": (
            0.5,
            lambda _: ("POST", "/predict", *encode_form(image, [f"head-{next(unknown, 0)}"])),
        ),
        "/healthz": (0.1, lambda _: ("GET", "/healthz")),
        "/heads": (0.1, lambda _: ("GET", "/heads")),
        "/heads/NAME": (0.2, lambda n: ("GET", f"/heads/{names[n % 5]}")),
        "/metrics": (0.5, lambda _: ("GET", "/metrics")),
    }
    answers = {name: Answers() for name in kinds}

    async def client(name: str) -> None:
        pause, request = kinds[name]
        connection, number = Connection("127.0.0.1", port), 0
        while time.perf_counter() < end:
            await answers[name].ask(connection, *request(number))
            number += 1
            await asyncio.sleep(pause)
        connection.close()

    await asyncio.gather(*map(client, kinds))
    return answers


async def _seconds_until_answered(connection: Connection, image: bytes, number: int) -> float:
    start = time.perf_counter()
    form = encode_form(image, [f"head-{number}"])
    while await Answers().ask(connection, "POST", "/predict", *form) != "200":
        if time.perf_counter() - start > 60:
            raise RuntimeError("the server does not recover")
        await asyncio.sleep(0.05)
    return round(time.perf_counter() - start, 2)
