"""A head in the store that makes the request for all heads fail.

At 64f666f, one published head whose tensors contradicted its description made ``*`` answer 500 for
every client. Now such a head cannot be published; if somebody writes it into the store by hand, it
is left out of ``*`` and counted, and a request that names it gets an error.
"""

import hashlib
import json

import numpy as np
import safetensors
import safetensors.numpy

import headkit

from .server import Server, photo


def test_hostile_head_is_left_out(server: Server) -> None:
    path = server.folder / "hostile.safetensors"
    with safetensors.safe_open(server.folder / "cat.safetensors", "np") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata.pop("checksum", None)
    tensors["fc.weight"] = np.ones((7, tensors["fc.weight"].shape[1]), np.float32)
    tensors["fc.bias"] = np.ones(7, np.float32)
    safetensors.numpy.save_file(tensors, path, metadata)
    try:
        server.store.publish(path, "hostile")
    except headkit.HeadkitError:
        _write_by_hand(server, path.read_bytes())
    status, answers = server.predict(photo(), "*")
    assert (status, {"cat", "dog"} <= set(answers), "hostile" in answers) == (200, True, False)
    assert server.predict(photo(), "hostile")[0] >= 400
    server.store.yank("hostile@1")


def _write_by_hand(server: Server, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    root = server.folder / "store"
    blob = root / "blobs" / digest[:2] / f"{digest}.safetensors"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    record = json.loads((root / "heads" / "cat" / "1.json").read_text())
    record.update(name="hostile", digest=digest, size=len(content))
    record.pop("checksum", None)
    (root / "heads" / "hostile").mkdir(parents=True)
    (root / "heads" / "hostile" / "1.json").write_text(json.dumps(record))
