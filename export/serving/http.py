"""The HTTP application that ``headkit serve`` runs: routes, status codes, metrics."""

from __future__ import annotations

import asyncio
import logging
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
from headkit.adapters.images.open import TooLarge
from headkit.registry.store.reference import Reference

from .limits import Limits, ServiceBusy, TooManyHeads
from .service import Service

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

logger = logging.getLogger("headkit")

STATUS_OF_ERROR: dict[type[HeadkitError], int] = {
    TooLarge: 413,
    DataError: 400,
    StoreError: 503,
    TooManyHeads: 422,
    RegistryError: 404,
    BackboneMismatch: 409,
    ServiceBusy: 503,
}
"""HTTP status for each class of error, such as 404 for an unknown head. The first match counts."""

FORM_BYTES = 64 * 1024
"""Maximum size in bytes of the names of heads in a request, in addition to the image."""


def application(service: Service) -> FastAPI:
    """Return the ASGI application for ``service``, which it starts and stops.

    ``POST /predict`` takes an image and references to heads. ``GET /heads`` lists the store,
    ``GET /healthz`` reports that the server runs, ``GET /metrics`` is for Prometheus, and
    ``GET /docs`` is the OpenAPI page. Errors are JSON ``{"detail": …}``. ``STATUS_OF_ERROR`` has
    the status of each class of error. In addition, 408 means that the body did not arrive in time,
    413 that it has too many bytes, and 422 that the request is malformed or names too many heads.
    Responses with 503 have ``Retry-After``.
    """
    metrics = _Metrics(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(title="headkit", summary="Many heads on one backbone.", lifespan=lifespan)
    app.add_middleware(_RequestLimits, service=service)

    @app.middleware("http")
    async def measure(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        start = time.perf_counter()
        response = await call_next(request)
        route = request.scope.get("route")
        path = getattr(route, "path", "other")
        metrics.requests.labels(path, str(response.status_code)).inc()
        metrics.seconds.labels(path).observe(time.perf_counter() - start)
        return response

    @app.exception_handler(HeadkitError)
    async def report_error(_: Request, error: HeadkitError) -> JSONResponse:
        statuses = (code for kind, code in STATUS_OF_ERROR.items() if isinstance(error, kind))
        status = next(statuses, 500)
        headers = {"Retry-After": "1"} if status == 503 else None
        return JSONResponse({"detail": _public_message(error, status, service)}, status, headers)

    @app.post("/predict")
    async def predict(
        image: Annotated[UploadFile, File(description="Image file.")],
        head: Annotated[
            list[str],
            Form(
                description="Reference to a head: flowers, flowers@3, flowers@prod or sha256:…; * "
                "for all heads."
            ),
        ],
        top_k: Annotated[
            int, Form(ge=1, le=1000, description="Maximum number of predictions per head.")
        ] = 5,
    ) -> dict[str, Any]:
        """Classify an image by one or more heads, with one pass of the backbone."""
        if len(head) > service.limits.heads:
            raise HTTPException(
                422,
                f"the request names {len(head)} heads; at most {service.limits.heads} are allowed",
            )
        for ref in head:
            if ref != "*":
                _parse(ref)
        content = await image.read()
        if len(content) > service.limits.upload_bytes:
            raise HTTPException(413, _too_many_bytes(service.limits))
        try:
            async with asyncio.timeout(service.limits.seconds):
                answers = await service.predict(content, head, top_k=top_k)
        except TimeoutError as error:
            raise ServiceBusy(f"no answer within {service.limits.seconds:g} s") from error
        return {
            name: {
                "head": str(answer.version),
                "digest": answer.version.digest,
                "predictions": answer.predictions,
            }
            for name, answer in answers.items()
        }

    @app.get("/heads")
    def list_heads() -> list[dict[str, Any]]:
        """List the names in the store."""
        return [asdict(entry) for entry in service.heads.entries()]

    @app.get("/heads/{ref}")
    def show_head(ref: str) -> dict[str, Any]:
        """Describe the version that a reference names."""
        return asdict(service.heads.resolve(str(_parse(ref))))

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        """Report that the server runs, and on which backbone."""
        backbone = service.info.backbone
        return {
            "status": "ok",
            "architecture": backbone["architecture"],
            "fingerprint": backbone["backbone"]["fingerprint"],
        }

    @app.get("/metrics", include_in_schema=False)
    def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _public_message(error: HeadkitError, status: int, service: Service) -> str:
    """Return what a client may know of an error: no path and no address. The log has the rest."""
    if isinstance(error, StoreError):
        logger.warning("the store cannot be used: %s", error)
        return "the store cannot be read: try again later"
    if status == 500:
        logger.error("a request failed: %s", error)
        return "the model cannot classify this image"
    return str(error).replace(service.store.url, "the store")


def _parse(ref: str) -> Reference:
    try:
        return Reference.parse(ref)
    except RegistryError as error:
        raise HTTPException(422, str(error)) from error


def _too_many_bytes(limits: Limits) -> str:
    return f"the request is too large: at most {limits.upload_bytes:,} bytes are allowed"


class _Metrics:
    """The metrics for Prometheus."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self.registry, "namespace": "headkit"}
        self.requests = Counter(
            "requests", "Number of answered requests.", ["path", "status"], **common
        )
        self.seconds = Histogram(
            "request_seconds", "Seconds from a request to its response.", ["path"], **common
        )
        sizes = [2**power for power in range(8)]
        batches = Histogram("batch_images", "Number of images per batch.", buckets=sizes, **common)
        passes = Histogram(
            "backbone_seconds", "Seconds that the backbone takes for a batch.", **common
        )
        waiting = Gauge("waiting_images", "Number of images that wait for the backbone.", **common)
        waiting.set_function(lambda: service.batcher.waiting)
        loaded = Gauge("loaded_heads", "Number of heads in memory.", **common)
        loaded.set_function(lambda: service.heads.loaded)
        errors = Counter("store_errors", "Number of failed reads of the store.", **common)

        def observe_batch(size: int, seconds: float) -> None:
            batches.observe(size)
            passes.observe(seconds)

        head_errors = Counter(
            "head_errors", "Number of heads that requests for * left out as they failed.", **common
        )
        service.batcher.on_batch, service.heads.on_store_error = observe_batch, errors.inc
        service.heads.on_head_error = head_errors.inc


class _RequestLimits:
    """ASGI middleware that refuses large bodies, slow bodies, and too many requests at once."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service, self.active = app, service, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        limits = self.service.limits
        max_bytes = limits.upload_bytes + FORM_BYTES
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > max_bytes:
            await JSONResponse({"detail": _too_many_bytes(limits)}, 413)(scope, receive, send)
            return
        deadline, num_bytes, complete = time.monotonic() + limits.seconds, 0, False
        counted = False

        async def receive_within_limits() -> Any:
            nonlocal num_bytes, complete, counted
            if complete:  # the next message is the end of the connection
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0.001))
            except TimeoutError as error:
                raise HTTPException(
                    408, f"the body did not arrive within {limits.seconds:g} s"
                ) from error
            num_bytes += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if num_bytes > max_bytes:
                raise HTTPException(413, _too_many_bytes(limits))
            if complete:
                # A body that arrives slowly takes no place from others.
                if self.active >= limits.waiting:
                    raise HTTPException(
                        503,
                        f"{self.active} requests are already waiting: try again later",
                        {"Retry-After": "1"},
                    )
                self.active += 1
                counted = True
            return message

        try:
            await self.app(scope, receive_within_limits, send)
        finally:
            self.active -= counted
