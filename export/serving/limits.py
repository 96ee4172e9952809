"""Limits of a server, and the errors for requests that exceed them."""

from __future__ import annotations

from dataclasses import dataclass

from headkit.adapters.errors import ExportError, RegistryError


class TooManyHeads(RegistryError):
    """A request names more heads than are allowed."""


class ServiceBusy(ExportError):
    """More requests wait than are allowed, or one waited for too long."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        upload_bytes: Maximum size of a request's body in bytes.
        pixels: Maximum number of pixels of an image. The size that the file states is checked
            before the image is decoded.
        seconds: Maximum seconds from a request to its response.
        heads: Maximum number of heads per request.
        waiting: Maximum number of requests whose bodies have arrived and that wait for an answer.
        connections: Maximum number of open connections.
        connections_per_client: Maximum number of open connections from one address. Behind a proxy,
            all clients have one address.
        header_seconds: Maximum seconds until the headers of a request have arrived.
        head_bytes: Maximum size of the heads in memory. The heads that were used least recently
            leave first.
    """

    upload_bytes: int = 20 * 2**20
    pixels: int = 25_000_000
    seconds: float = 30.0
    heads: int = 1000
    waiting: int = 1000
    connections: int = 1000
    connections_per_client: int = 500
    header_seconds: float = 10.0
    head_bytes: int = 2**30
