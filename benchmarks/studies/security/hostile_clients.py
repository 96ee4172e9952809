"""Measure a server that honest and hostile clients use at the same time."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from headkit.registry.store.store import HeadStore

from ..http_client import Connection, encode_form
from . import attackers
from .attackers import HALF_OPEN, SLOW_BODIES, UPLOADS, Attack
from .server_process import Answers, Server, draw_photo, publish_heads, run_server

DECODED_EDGE = 4990
"""Edge of a square image that is just small enough to be decoded."""
HONEST = "127.0.0.1"


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
    command = [sys.executable, "-m", attackers.__name__, str(server.port), str(attack.seconds)]
    command += [attack.address, str(attack.edge), str(attack.share)]
    quiet = asyncio.run(_ask(server.port, attack.seconds / 10))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hostile:
        if hostile.stdout is None or hostile.stdout.readline() != "ready\n":
            raise RuntimeError("the hostile clients failed")
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
