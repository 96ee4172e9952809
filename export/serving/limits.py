"""Limits of a server, and the errors for requests that exceed them."""

from __future__ import annotations

from dataclasses import dataclass

from headkit.adapters.errors import DataError, ExportError, RegistryError


class TooManyHeads(RegistryError):
    """A request names more heads, or asks for more predictions, than are allowed."""


class HeadTooLarge(RegistryError):
    """A head takes more memory than all heads together may take."""


class BadForm(DataError):
    """The body of a request is not the form that is expected."""


class ServiceBusy(ExportError):
    """More requests wait than are allowed, or one waited for too long."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        upload_bytes: Maximum size of a request's body in bytes.
        pixels: Maximum number of pixels of an image. The size that the file states is checked
            before the image is decoded. Images that are decoded at the same time have at most a
            quarter more pixels together.
        seconds: Maximum seconds until the body of a request has arrived, from then to its response,
            and until a client has read what the server sends.
        heads: Maximum number of heads per request.
        predictions: Maximum number of predictions per response.
        waiting: Maximum number of requests whose bodies have arrived and that wait for an answer.
        body_bytes: Maximum size of the bodies of all requests together. The largest one that waits
            gives way.
        connections: Maximum number of open connections. The oldest one whose request has not
            arrived yet gives way.
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
    predictions: int = 20_000
    waiting: int = 1000
    body_bytes: int = 128 * 2**20
    connections: int = 1000
    connections_per_client: int = 500
    header_seconds: float = 10.0
    head_bytes: int = 2**30
