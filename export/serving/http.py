"""HTTP in front of ``serving``: the application that ``headkit serve`` runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

from headkit.adapters.errors import (
    BackboneMismatch,
    DataError,
    DependencyMissing,
    HeadkitError,
    RegistryError,
    StoreError,
)
from headkit.adapters.images import TooLarge
from headkit.registry.store.reference import Reference

from .service import Limits, Overloaded, Service, TooManyHeads

try:
    from fastapi import FastAPI, File, Form, HTTPException, Request, Response, UploadFile
    from fastapi.responses import JSONResponse
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        generate_latest,
    )
except ImportError as missing:
    raise DependencyMissing.for_feature("serving", "headkit[serve]") from missing

FORM_BYTES = 64 * 1024
"""What the names of heads may take in a request, beside the image."""


def application(service: Service) -> FastAPI:
    """Return the ASGI application that serves ``service``; it starts and stops it.

    ``POST /predict`` takes an image and names of heads, ``GET /heads`` lists the store,
    ``GET /healthz`` says that it runs, ``GET /metrics`` is for Prometheus, ``GET /docs`` is the
    page of OpenAPI. Errors are JSON ``{"detail": …}``: 400 for an image that cannot be read, 404
    for a head that is not there, 409 for one of another backbone, 413 for too many bytes or pixels,
    408 for a body that does not come, 422 for a malformed request or too many heads, 503 with
    ``Retry-After`` when overloaded, out of time, or the store cannot be read.
    """
    metrics = _Metrics(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(title="headkit", summary="Many heads on one backbone.", lifespan=lifespan)
    app.add_middleware(_Bounded, service=service)

    @app.middleware("http")
    async def counted(
        request: Request, go_on: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        start = time.perf_counter()
        response = await go_on(request)
        route = request.scope.get("route")
        path = getattr(route, "path", "other")
        metrics.requests.labels(path, str(response.status_code)).inc()
        metrics.seconds.labels(path).observe(time.perf_counter() - start)
        return response

    @app.exception_handler(HeadkitError)
    async def told(_: Request, error: HeadkitError) -> JSONResponse:
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        headers = {"Retry-After": "1"} if status == 503 else None
        return JSONResponse({"detail": str(error)}, status, headers)

    @app.post("/predict")
    async def predict(
        image: Annotated[UploadFile, File(description="An image file.")],
        head: Annotated[
            list[str], Form(description="flowers, flowers@3, flowers@prod, sha256:… or * for all.")
        ],
        top_k: Annotated[int, Form(ge=1, le=1000, description="Predictions per head.")] = 5,
    ) -> dict[str, Any]:
        """Classify an image by one head or several, for one pass of the backbone."""
        if len(head) > service.limits.heads:
            raise HTTPException(422, f"{len(head)} heads, at most {service.limits.heads}")
        for ref in head:
            if ref != "*":
                _parsed(ref)
        content = await image.read()
        if len(content) > service.limits.upload_bytes:
            raise HTTPException(413, _too_many(service.limits))
        try:
            async with asyncio.timeout(service.limits.seconds):
                answers = await service.predict(content, head, top_k=top_k)
        except TimeoutError as error:
            raise Overloaded(f"no answer within {service.limits.seconds:g} s") from error
        return {
            name: {
                "head": str(answer.version),
                "digest": answer.version.digest,
                "predictions": answer.predictions,
            }
            for name, answer in answers.items()
        }

    @app.get("/heads")
    def heads() -> list[dict[str, Any]]:
        """List the names in the store."""
        return [asdict(entry) for entry in service.entries()]

    @app.get("/heads/{ref}")
    def head_of(ref: str) -> dict[str, Any]:
        """Describe the version that a reference names."""
        return asdict(service.store.resolve(_parsed(ref)))

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        """Say that it runs, and on which backbone."""
        backbone = service.info.backbone
        return {
            "status": "ok",
            "architecture": backbone["architecture"],
            "fingerprint": backbone["backbone"]["fingerprint"],
            "store": service.store.url,
        }

    @app.get("/metrics", include_in_schema=False)
    def measured() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


_STATUS: dict[type[HeadkitError], int] = {
    TooLarge: 413,
    DataError: 400,
    StoreError: 503,
    TooManyHeads: 422,
    RegistryError: 404,
    BackboneMismatch: 409,
    Overloaded: 503,
}


def _parsed(ref: str) -> Reference:
    try:
        return Reference.parse(ref)
    except RegistryError as error:
        raise HTTPException(422, str(error)) from error


def _too_many(limits: Limits) -> str:
    return f"at most {limits.upload_bytes:,} bytes are allowed"


class _Metrics:
    """What Prometheus reads."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self.registry, "namespace": "headkit"}
        self.requests = Counter("requests", "Answered requests.", ["path", "status"], **common)
        self.seconds = Histogram("request_seconds", "From request to answer.", ["path"], **common)
        sizes = [2**power for power in range(8)]
        batches = Histogram("batch_images", "Images per batch.", buckets=sizes, **common)
        passes = Histogram("backbone_seconds", "Of one batch.", **common)
        waiting = Gauge("waiting_images", "Wait for the backbone.", **common)
        waiting.set_function(lambda: service.waiting)
        loaded = Gauge("loaded_heads", "In memory.", **common)
        loaded.set_function(lambda: service.loaded)
        errors = Counter("store_errors", "Served as found before instead.", **common)

        def batch(size: int, seconds: float) -> None:
            batches.observe(size)
            passes.observe(seconds)

        service.observed.batch, service.observed.store_error = batch, errors.inc


class _Bounded:
    """ASGI middleware that refuses bodies of more bytes, slow ones, and too many at once."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service, self.active = app, service, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        limits = self.service.limits
        most = limits.upload_bytes + FORM_BYTES
        told = dict(scope["headers"]).get(b"content-length", b"")
        if told.isdigit() and int(told) > most:
            await JSONResponse({"detail": _too_many(limits)}, 413)(scope, receive, send)
            return
        if self.active >= limits.waiting:
            detail = {"detail": f"{self.active} requests wait already"}
            await JSONResponse(detail, 503, {"Retry-After": "1"})(scope, receive, send)
            return
        end, got, complete = time.monotonic() + limits.seconds, 0, False

        async def bounded() -> Any:
            nonlocal got, complete
            if complete:  # what comes now is the end of the connection
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(end - time.monotonic(), 0.001))
            except TimeoutError as error:
                raise HTTPException(408, f"no whole body within {limits.seconds:g} s") from error
            got += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if got > most:
                raise HTTPException(413, _too_many(limits))
            return message

        self.active += 1
        try:
            await self.app(scope, bounded, send)
        finally:
            self.active -= 1
