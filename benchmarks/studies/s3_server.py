"""Run moto's S3 server on this machine, for tests and measurements."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

BUCKET = "heads"


@contextmanager
def s3_server(*, threaded: bool = False) -> Iterator[dict[str, str]]:
    """Run an S3 endpoint with an empty bucket.

    Args:
        threaded: Answer requests at the same time. moto first checks whether an object exists and
            then writes it, which with several threads is not a conditional write.

    Yields:
        Environment variables with which an S3 client uses the endpoint.
    """
    import fsspec
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            pass

    # fsspec keeps clients, which would go on asking an endpoint that has ended.
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=threaded, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        _put(f"{environment['AWS_ENDPOINT_URL']}/{BUCKET}")
        yield environment
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _put(url: str) -> None:
    from urllib.request import Request, urlopen

    with urlopen(Request(url, method="PUT")):  # noqa: S310 - a server of this process
        pass
