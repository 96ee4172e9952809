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
        waiting: Maximum number of requests that wait for the backbone.
        head_bytes: Maximum size of the heads in memory. The heads that were used least recently
            leave first.
    """

    upload_bytes: int = 20 * 2**20
    pixels: int = 50_000_000
    seconds: float = 30.0
    heads: int = 1000
    waiting: int = 1000
    head_bytes: int = 2**30
