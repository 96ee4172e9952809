"""The HTTP application that ``headkit serve`` runs: routes and status codes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from headkit.adapters.errors import (
    BackboneMismatch,
    DataError,
    DependencyMissing,
    HeadkitError,
    RegistryError,
    SignatureError,
    StoreError,
)
from headkit.adapters.images.pixels import TooLarge
from headkit.registry.store.layout import Entry
from headkit.registry.store.reference import Reference

from .form import SCHEMA, read_form
from .limits import BadForm, HeadTooLarge, ServiceBusy, TooManyHeads
from .log import SeldomLog
from .service import Service

try:
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.responses import JSONResponse, StreamingResponse
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    from .bodies import Bodies, unless_client_leaves
    from .metrics import Measured, Metrics
except ImportError as missing:
    raise DependencyMissing.for_feature("serving", "headkit[serve]") from missing

STATUS_OF_ERROR: dict[type[HeadkitError], int] = {
    TooLarge: 413,
    BadForm: 422,
    DataError: 400,
    SignatureError: 403,
    StoreError: 503,
    TooManyHeads: 422,
    HeadTooLarge: 422,
    RegistryError: 404,
    BackboneMismatch: 409,
    ServiceBusy: 503,
}
"""HTTP status for each class of error, such as 404 for an unknown head. The first match counts."""

CHUNK = 64 * 1024
"""Number of bytes of a long list that are sent at a time."""


def application(service: Service) -> FastAPI:
    """Return the ASGI application for ``service``, which it starts and stops.

    ``POST /predict`` takes an image and references to heads. ``GET /heads`` lists the store,
    ``GET /healthz`` reports that the server runs, ``GET /metrics`` is for Prometheus, and
    ``GET /docs`` is the OpenAPI page. Errors are JSON ``{"detail": …}``. ``STATUS_OF_ERROR`` has
    the status of each class of error. In addition, 408 means that the body did not arrive in time,
    and 413 that it has too many bytes. Responses with 503 have ``Retry-After``.
    """
    metrics, bodies, listing = Metrics(service), Bodies(), _Listing(service)
    log = SeldomLog()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="headkit",
        summary="Many heads on one backbone.",
        lifespan=lifespan,
        redirect_slashes=False,  # the address would be made of what the client calls this host
    )
    app.add_middleware(Measured, metrics=metrics)

    @app.exception_handler(HeadkitError)
    async def report_error(_: Request, error: HeadkitError) -> JSONResponse:
        statuses = (code for kind, code in STATUS_OF_ERROR.items() if isinstance(error, kind))
        status = next(statuses, 500)
        headers = {"Retry-After": "1"} if status == 503 else None
        detail = _public_message(error, status, service, log)
        return JSONResponse({"detail": detail}, status, headers)

    @app.post("/predict", openapi_extra=SCHEMA, response_model=dict[str, Any])
    async def predict(request: Request) -> Response:
        """Classify an image by one or more heads, with one pass of the backbone."""
        limits = service.limits
        async with bodies.receive(request, limits) as body:
            form = read_form(body, request.headers.get("content-type", ""), limits.heads)
            body.clear()
            for ref in form.heads:
                if ref != "*":
                    _parse(ref)
            work = service.predict(form.image, form.heads, top_k=form.top_k)
            try:
                async with asyncio.timeout(limits.seconds):
                    answers = await unless_client_leaves(request, work)
            except TimeoutError as error:
                raise ServiceBusy(f"no answer within {limits.seconds:g} s") from error
        values = {
            name: {
                "head": str(answer.version),
                "digest": answer.version.digest,
                "predictions": answer.predictions,
            }
            for name, answer in answers.items()
        }
        return Response(json.dumps(values), media_type="application/json")

    @app.get("/heads", response_model=list[dict[str, Any]])
    async def list_heads() -> Response:
        """List the names in the store."""
        content = await listing.content()
        if len(content) <= CHUNK:
            return Response(content, media_type="application/json")
        # One copy of a long list is sent to all clients, however slowly each of them reads.
        chunks = (content[place : place + CHUNK] for place in range(0, len(content), CHUNK))
        headers = {"Content-Length": str(len(content))}
        return StreamingResponse(_each(chunks), headers=headers, media_type="application/json")

    @app.get("/heads/{ref}")
    async def show_head(ref: str) -> dict[str, Any]:
        """Describe the version that a reference names."""
        return asdict(await service.heads.resolve(str(_parse(ref))))

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Report that the server runs, and on which backbone."""
        backbone = service.info.backbone
        return {
            "status": "ok",
            "architecture": backbone["architecture"],
            "fingerprint": backbone["backbone"]["fingerprint"],
        }

    @app.get("/metrics", include_in_schema=False)
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


class _Listing:
    """The names in a store as JSON, which all requests share."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._entries: list[Entry] | None = None
        self._content: asyncio.Future[bytes] | None = None

    async def content(self) -> bytes:
        entries = await self.service.heads.entries()
        if self._content is None or entries is not self._entries:
            self._entries = entries
            self._content = asyncio.ensure_future(asyncio.to_thread(_encode_entries, entries))
        return await asyncio.shield(self._content)


def _encode_entries(entries: list[Entry]) -> bytes:
    return json.dumps([vars(entry) for entry in entries]).encode()


async def _each(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def _public_message(error: HeadkitError, status: int, service: Service, log: SeldomLog) -> str:
    """Return what a client may know of an error: no path and no address. The log has the rest."""
    if isinstance(error, SignatureError):
        log.warn("a head is not served: %s", error)
        return "this version is not signed with a key that the server trusts"
    if isinstance(error, StoreError):
        log.warn("the store cannot be used: %s", error)
        return "the store cannot be read: try again later"
    if status == 500:
        log.warn("a request failed: %s", error)
        return "the model cannot classify this image"
    return str(error).replace(service.store.url, "the store")


def _parse(ref: str) -> Reference:
    try:
        return Reference.parse(ref)
    except RegistryError as error:
        raise HTTPException(422, str(error)) from error
