"""Requests: pass one to the application of ``headkit serve`` in this process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from headkit.adapters.errors import HeadkitError
from headkit.export.serving.http import application
from headkit.export.serving.limits import Limits
from headkit.export.serving.service import Service
from headkit.registry.store.store import HeadStore

from ..mutations import parts
from ..mutations.images import draw_images
from ..mutations.requests import edit_request, encode_field, encode_fields
from ..seeds import SeedFiles
from .door import Door

_LIMITS = Limits(upload_bytes=2_000_000, pixels=1_000_000, seconds=10)


class Refused(HeadkitError):
    """The server answers with a status from 400 to 499."""


def open_door(seeds: SeedFiles, folder: Path) -> Door:
    """See ``doors.open_door``."""
    store = HeadStore(folder / "store")
    for name, kind in (("plain", "own"), ("deep", "mlp")):
        store.publish(seeds.folder / f"resnet-{kind}.safetensors", name)
    loop = asyncio.new_event_loop()
    service = Service(store, seeds.folder / "resnet-backbone.onnx", threads=1, limits=_LIMITS)
    app = application(service)
    loop.run_until_complete(service.start())

    def enter(content: bytes) -> None:
        status = loop.run_until_complete(_request(app, parts.split(content)))
        if 400 <= status < 500:
            raise Refused(f"the status is {status}")
        if not 200 <= status < 300:
            raise RuntimeError(f"the status is {status}")

    image = draw_images()[5]
    forms = (
        {"0": encode_field("image", image, "a.jpg"), "1": encode_field("head", b"plain")},
        {"0": encode_field("head", b"*"), "1": encode_field("image", image, "a.jpg")},
        {
            "0": encode_field("image", image, "a.jpg"),
            "1": encode_field("head", b"plain@1"),
            "2": encode_field("head", b"deep"),
            "3": encode_field("top_k", b"2"),
        },
    )
    common = {"method": b"POST", "target": b"/predict"}
    headers = {"headers": b"content-type: multipart/form-data; boundary=edge"}
    valid = [parts.join({**common, **headers, "fields": parts.join(form)}) for form in forms]
    return Door(valid, edit_request, enter)


async def _request(app: Any, request: dict[str, bytes]) -> int:
    """Pass a request to an ASGI application; return the status of its answer."""
    body = request.get("body", encode_fields(parts.split(request["fields"])))
    size = int(request.get("chunk", b"1000000"))
    pieces = [body[at : at + size] for at in range(0, len(body), size)][:500] or [b""]
    lines = [line.partition(b": ") for line in request["headers"].split(b"\n")]
    headers = [(name.lower(), value) for name, _, value in lines]
    if not any(name == b"content-length" for name, _ in headers):
        headers.append((b"content-length", str(len(body)).encode()))
    path, _, query = request["target"].partition(b"?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request["method"].decode(),
        "scheme": "http",
        "path": path.decode("utf-8", "replace"),
        "raw_path": path,
        "query_string": query,
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    messages = [
        {"type": "http.request", "body": piece, "more_body": at < len(pieces) - 1}
        for at, piece in enumerate(pieces)
    ]
    waiting, never = iter(messages), asyncio.Event()
    statuses: list[int] = []

    async def receive() -> Any:
        message = next(waiting, None)
        if message is None:  # the client stays until it has the answer
            await never.wait()
        return message

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receive, send)
    if not statuses:
        raise RuntimeError("there is no answer")
    return statuses[0]
