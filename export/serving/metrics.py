"""The metrics of a server, for Prometheus."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from .service import Service


class Metrics:
    """The metrics of a service, which report to ``registry``."""

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


class Measured:
    """ASGI middleware that counts requests and their durations."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, and count it when its response starts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()

        async def send_measured(message: Any) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")
                self.metrics.requests.labels(path, str(message["status"])).inc()
                self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
            await send(message)

        await self.app(scope, receive, send_measured)
