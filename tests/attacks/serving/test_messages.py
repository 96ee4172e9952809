"""Requests whose errors tell a client about the machine.

At 64f666f, messages held the path of the store and the address of an object in memory. Now a client
learns what is wrong with its request and no more; the log has the rest.
"""

import pytest

from .server import Server, photo

REQUESTS = {
    "unknown head": (photo(), "no-such-head"),
    "unknown version": (photo(), "cat@99"),
    "unknown tag": (photo(), "cat@prod"),
    "unknown digest": (photo(), "sha256:" + "0" * 64),
    "no name": (photo(), "../../etc/passwd"),
    "no image": (b"no image", "cat"),
    "part of an image": (photo()[:200], "cat"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_message_names_no_place(server: Server, name: str) -> None:
    image, head = REQUESTS[name]
    status, answer = server.predict(image, head)
    assert 400 <= status < 500
    text = str(answer)
    assert str(server.folder) not in text
    assert " at 0x" not in text
    assert "Traceback" not in text


def test_damaged_head_file_is_not_described(server: Server) -> None:
    version = server.store.publish(server.folder / "cat.safetensors", "broken")
    blobs = list((server.folder / "store").rglob(f"{version.digest}*"))
    content = blobs[0].read_bytes()
    try:
        blobs[0].write_bytes(content[:-1])
        status, answer = server.ask("GET", "/heads/broken")
        status, answer = server.predict(photo(), f"sha256:{version.digest[:12]}")
        assert str(server.folder) not in str(answer)
    finally:
        blobs[0].write_bytes(content)
        server.store.yank("broken@1")
    assert status in (200, 503)
