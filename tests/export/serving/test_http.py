import asyncio
import io
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image, ImageFile

import headkit
from headkit import ExportError, Head, HeadStore, Predictor
from headkit.adapters.heads.kinds import Kind
from headkit.benchmarks.studies.http_client import Connection, encode_form
from headkit.export.exporter import export
from headkit.export.serving.http import application
from headkit.export.serving.limits import Limits
from headkit.export.serving.lookups import PROBE_SECONDS
from headkit.export.serving.service import Service
from tests.backbones import SMALL, active_backbone
from tests.signing_keys import write_keys

REFRESH = 0.2
"""Seconds after which the service looks a name up again."""
GENEROUS = 120
"""Seconds after which a test that hangs ends. Even on a busy machine no answer takes as long."""
KINDS: dict[str, Kind] = {"plain": "linear", "deep": "mlp", "angle": "cosine"}


@dataclass
class Served:
    """A running server, its service and its store."""

    port: int
    store: HeadStore
    folder: Path
    service: Service

    def ask(self, *requests: tuple[Any, ...]) -> list[tuple[int, Any]]:
        """Send requests over one connection."""

        async def all_of_them() -> list[tuple[int, Any]]:
            connection = Connection("127.0.0.1", self.port)
            try:
                return [await connection.request(*request) for request in requests]
            finally:
                connection.close()

        return asyncio.run(all_of_them())

    def predict(self, image: bytes, *heads: str, top_k: int = 1) -> tuple[int, Any]:
        return self.ask(("POST", "/predict", *encode_form(image, heads, top_k)))[0]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serving")
    backbone = active_backbone()
    store = HeadStore(folder / "store")
    for name, kind in KINDS.items():
        headed = headkit.adapt(active_backbone(), 3, kind=kind)
        head = headkit.save_head(headed, folder / f"{name}.safetensors", label_names=list("abc"))
        store.publish(head, name)
    other = headkit.save_head(active_backbone("test_vit"), folder / "other.safetensors")
    store.publish(other, "other")
    onnx = export(backbone, folder / "backbone.onnx", "backbone").path
    limits = Limits(upload_bytes=200_000, pixels=1_000_000, seconds=GENEROUS)
    service = Service(store, onnx, refresh_seconds=REFRESH, limits=limits)
    server = uvicorn.Server(uvicorn.Config(application(service), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Served(port, store, folder, service)
    server.should_exit = True
    thread.join(GENEROUS)
    assert not thread.is_alive()


def picture(seed: int = 0, size: tuple[int, int] = (180, 200)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_answers_equal_those_of_the_exported_model(served: Served) -> None:
    image = picture()
    status, answers = served.predict(image, *KINDS, top_k=3)
    assert status == 200
    heads = {name: Head.load(served.folder / f"{name}.safetensors") for name in KINDS}
    exported = export(heads, served.folder / "multi.onnx", "multi", backbone=active_backbone())
    predictor = Predictor(exported.path)
    for name, head in heads.items():
        (expected,) = predictor(Image.open(io.BytesIO(image)), head=name, top_k=3)
        found = answers[name]
        assert (found["head"], found["digest"]) == (f"{name}@1", head.digest)
        assert [p["label"] for p in found["predictions"]] == [p["label"] for p in expected]
        for one, two in zip(found["predictions"], expected, strict=True):
            assert one["score"] == pytest.approx(two["score"], abs=1e-4)


def test_a_star_stands_for_all_heads_of_this_backbone(served: Served) -> None:
    status, answers = served.predict(picture(), "*")
    assert status == 200
    assert set(KINDS) <= set(answers)
    assert "other" not in answers


def outlast_refresh() -> None:
    time.sleep(1.5 * REFRESH)


def test_versions_that_nobody_signed_are_not_served(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = write_keys(tmp_path, "key")
    plain = Head.load(served.folder / "plain.safetensors")
    served.store.publish(plain, "signed", tags=["prod"], sign=keys.private)
    reader = HeadStore(served.store.url, verify_with=keys.public)
    monkeypatch.setattr(served.service.heads, "store", reader)
    outlast_refresh()
    status, answers = served.predict(picture(), "signed@prod", "*")
    assert status == 200
    assert {"signed@prod", "signed"} <= set(answers)
    # The bytes are in memory already. The version is another one all the same.
    served.store.publish(plain, "signed", tags=["prod"])
    outlast_refresh()
    served.store.publish(plain, "unsigned")
    for ref in ("signed@2", "unsigned"):
        status, answer = served.predict(picture(), ref)
        assert status == 403
        assert answer == {"detail": "this version is not signed with a key that the server trusts"}
    assert served.predict(picture(), "signed@prod")[1]["signed@prod"]["head"] == "signed@1"
    outlast_refresh()
    assert "unsigned" not in served.predict(picture(), "*")[1]


def test_new_versions_and_moved_tags_are_picked_up(served: Served) -> None:
    path = served.folder / "moving.safetensors"
    for notes in ("first", "second"):
        base = Head.load(served.folder / "plain.safetensors")
        base.with_changes(notes=notes).save(path)
        served.store.publish(path, "moving", tags=["prod"])
        outlast_refresh()
        assert served.predict(picture(), "moving")[1]["moving"]["head"][-1] == (
            "1" if notes == "first" else "2"
        )
    served.store.tag("moving@1", "prod")
    outlast_refresh()
    assert served.predict(picture(), "moving@prod")[1]["moving@prod"]["head"] == "moving@1"


@pytest.mark.parametrize(
    ("image", "head", "status", "message"),
    [
        (b"no image", "plain", 400, "cannot read the image"),
        (picture()[:500], "plain", 400, "cannot read the image"),
        (b"", "plain", 400, "cannot read the image"),
        (picture(), "unknown", 404, "no head 'unknown'"),
        (picture(), "plain@9", 404, "no version 9"),
        (picture(), "../x", 422, "not a valid head name"),
        (picture(), "other", 409, "trained on test_vit"),
        (bytes(300_000), "plain", 413, "bytes are allowed"),
    ],
)
def test_each_error_has_its_status(
    served: Served, image: bytes, head: str, status: int, message: str
) -> None:
    found, answer = served.predict(image, head)
    assert (found, message in answer["detail"]) == (status, True), answer
    assert served.predict(picture(), "plain")[0] == 200


def test_an_image_of_many_pixels_is_refused_before_it_is_decoded(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    load = ImageFile.ImageFile.load

    def counted(image: ImageFile.ImageFile) -> Any:
        decoded.append(image.size)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    assert served.predict(picture(), "plain")[0] == 200
    assert set(decoded) == {(200, 180)}
    decoded.clear()
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 100_000
    status, answer = served.predict(buffer.getvalue(), "plain")
    assert (status, "10000 x 10000 pixels" in answer["detail"]) == (413, True)
    assert decoded == []


def test_a_large_body_without_a_content_length_is_refused(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: multipart/form-data; boundary=edge\r\n\r\n"
        )
        part = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        chunk = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
        answer = b""
        connection.settimeout(GENEROUS)
        try:
            for _ in range(200):
                connection.sendall(chunk)
            connection.sendall(b"0\r\n\r\n")
        except OSError:  # refused while we still send
            pass
        while b"\r\n" not in answer:
            some = connection.recv(4096)
            if not some:
                break
            answer += some
    assert answer.split(b"\r\n")[0].split()[1] == b"413"
    assert served.predict(picture(), "plain")[0] == 200


def test_server_survives_cut_connections(served: Served) -> None:
    body, kind = encode_form(picture(), ["plain"])
    for cut in (0, 10, len(body) // 2, len(body)):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(
                f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body[:cut]
            )
    assert served.predict(picture(), "plain")[0] == 200
    assert served.service.batcher.waiting == 0


def test_many_at_once_are_batched_and_each_gets_its_own_answer(served: Served) -> None:
    sizes = []
    batcher = served.service.batcher
    observe, batcher.on_batch = batcher.on_batch, (lambda size, _: sizes.append(size))
    images = [picture(seed) for seed in range(24)]
    alone = [served.predict(image, "plain")[1]["plain"]["predictions"] for image in images]
    sizes.clear()

    async def together() -> list[tuple[int, Any]]:
        connections = [Connection("127.0.0.1", served.port) for _ in images]
        requests = (
            one.request("POST", "/predict", *encode_form(image, ["plain"]))
            for one, image in zip(connections, images, strict=True)
        )
        found = await asyncio.gather(*requests)
        for one in connections:
            one.close()
        return list(found)

    answers = asyncio.run(together())
    batcher.on_batch = observe
    assert sum(sizes) == len(images)
    assert max(sizes) > 1
    for (status, answer), expected in zip(answers, alone, strict=True):
        assert status == 200
        (found,), (wanted,) = answer["plain"]["predictions"], expected
        assert found["label"] == wanted["label"]
        assert found["score"] == pytest.approx(wanted["score"], abs=1e-5)


def test_heads_health_and_metrics_can_be_requested(served: Served) -> None:
    (_, heads), (_, one), (_, health), (_, metrics), (status, _) = served.ask(
        ("GET", "/heads"),
        ("GET", "/heads/plain@1"),
        ("GET", "/healthz"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
    )
    assert {"plain", "deep", "angle", "other"} <= {entry["name"] for entry in heads}
    assert one["head"]["num_classes"] == 3
    assert (health["status"], health["architecture"]) == ("ok", SMALL)
    assert 'headkit_requests_total{path="/predict",status="200"}' in metrics
    assert "headkit_batch_images_bucket" in metrics
    assert status == 200
    (status, openapi), *_ = served.ask(("GET", "/openapi.json"))
    assert "/predict" in openapi["paths"]


def test_too_many_and_too_long_requests_are_refused(served: Served) -> None:
    limits, batcher = served.service.limits, served.service.batcher
    run = batcher.run
    served.service.limits = Limits(waiting=0)
    answered = threading.Event()
    try:
        status, answer = served.predict(picture(), "plain")
        assert (status, "already waiting" in answer["detail"]) == (503, True)
        served.service.limits = Limits(seconds=0.5)
        batcher.run = lambda pixels: run(pixels) if answered.wait(GENEROUS) else []
        status, answer = served.predict(picture(), "plain")
        assert (status, "no answer within" in answer["detail"]) == (503, True)
    finally:
        answered.set()
        batcher.run = run
        served.service.limits = limits
    assert served.predict(picture(), "plain")[0] == 200


def test_a_body_that_never_arrives_times_out(served: Served) -> None:
    limits = served.service.limits
    served.service.limits = Limits(seconds=0.3)
    try:
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
                b"Content-Type: multipart/form-data; boundary=edge\r\n\r\n--edge"
            )
            connection.settimeout(GENEROUS)
            assert connection.recv(4096).split()[1] == b"408"
    finally:
        served.service.limits = limits


def test_a_narrow_image_is_refused_before_it_is_resized(served: Served) -> None:
    buffer = io.BytesIO()
    Image.new("1", (1, 30_000)).save(buffer, "PNG")
    status, answer = served.predict(buffer.getvalue(), "plain")
    assert (status, "1 x 30000 pixels" in answer["detail"]) == (413, True)


def test_a_star_skips_a_damaged_head(served: Served) -> None:
    base = Head.load(served.folder / "plain.safetensors").with_changes(notes="to be damaged")
    version = served.store.publish(base, "damaged")
    digest = version.digest
    blob = Path(served.store.url) / "blobs" / digest[:2] / f"{digest}.safetensors"
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    outlast_refresh()
    status, answers = served.predict(picture(), "*")
    assert (status, "plain" in answers, "damaged" in answers) == (200, True, False)
    status, answer = served.predict(picture(), "damaged")
    # The log has the reason; a client learns nothing of paths and addresses.
    assert (status, answer["detail"]) == (503, "the store cannot be read: try again later")
    status, answer = served.predict(picture(), "*", "no-such-head")
    assert (status, "the store has no head" in answer["detail"]) == (404, True)
    assert str(served.folder) not in answer["detail"]


def test_known_heads_are_served_while_the_store_is_unreadable(served: Served) -> None:
    root, away = Path(served.store.url), served.folder / "away"
    assert served.predict(picture(), "plain", "*")[0] == 200
    (_, listed), *_ = served.ask(("GET", "/heads"))
    root.rename(away)
    try:
        outlast_refresh()
        status, answers = served.predict(picture(), "plain")
        assert (status, answers["plain"]["head"]) == (200, "plain@1")
        status, answers = served.predict(picture(), "*")
        assert (status, set(KINDS) <= set(answers)) == (200, True)
        status, answer = served.predict(picture(), "never-asked-for")
        assert (status, "the store cannot be read" in answer["detail"]) == (503, True)
        (_, heads), (_, metrics) = served.ask(("GET", "/heads"), ("GET", "/metrics"))
        assert heads == listed
        (errors,) = re.findall(r"^headkit_store_errors_total (\S+)", metrics, re.MULTILINE)
        assert float(errors) >= 2
    finally:
        away.rename(root)
    assert served.predict(picture(), "never-asked-for")[0] == 404


def test_a_store_that_hangs_stops_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert served.predict(picture(), "*")[0] == 200
    served.ask(("GET", "/heads"))
    answers, hangs = threading.Event(), HeadStore(served.store.url)

    def hang(function: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*arguments: Any) -> Any:
            answers.wait(GENEROUS)
            return function(*arguments)

        return wait

    for name in ("list", "resolve", "load"):
        monkeypatch.setattr(served.service.heads.store, name, hang(getattr(hangs, name)))
    lookups = served.service.heads.lookups
    monkeypatch.setattr(lookups, "probe", hang(lookups.probe))
    outlast_refresh()
    try:
        durations = []
        for refs in (["plain"], ["plain"], ["*"], ["deep"], ["nobody-knows-it"], ["plain"]):
            start = time.monotonic()
            status, answer = served.predict(picture(), *refs)
            durations.append(time.monotonic() - start)
            expected = 503 if refs == ["nobody-knows-it"] else 200
            assert status == expected, answer
        start = time.monotonic()
        statuses = [status for status, _ in served.ask(("GET", "/healthz"), ("GET", "/heads"))]
        assert statuses == [200, 200]
        assert time.monotonic() - start < GENEROUS / 4
        assert lookups.hanging
        # Without a deadline, each of these would wait for GENEROUS seconds.
        assert max(durations) < GENEROUS / 4
    finally:
        answers.set()
    monkeypatch.undo()
    deadline = time.monotonic() + GENEROUS
    while served.predict(picture(), "nobody-knows-it")[0] != 404:  # until the store was probed
        assert time.monotonic() < deadline
        time.sleep(PROBE_SECONDS / 5)
    assert not lookups.hanging


def test_a_head_that_fails_is_left_out_of_a_star(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert served.predict(picture(), "*")[0] == 200
    loaded = served.service.heads._loaded
    digest = Head.load(served.folder / "plain.safetensors").digest

    def fail(_: Any) -> Any:
        raise RuntimeError("this head fails")

    monkeypatch.setitem(loaded, digest, replace(loaded[digest], logits=fail))
    status, answers = served.predict(picture(), "*")
    assert (status, "plain" in answers, "deep" in answers) == (200, False, True)
    assert served.predict(picture(), "plain") == (
        500,
        {"detail": "the model cannot classify this image"},
    )
    ((_, metrics),) = served.ask(("GET", "/metrics"))
    (errors,) = re.findall(r"^headkit_head_errors_total (\S+)", metrics, re.MULTILINE)
    assert float(errors) >= 1


def test_a_star_for_too_many_heads_is_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.service.heads, "max_heads", 2)
    status, answer = served.predict(picture(), "*")
    assert (status, "more heads than the 2" in answer["detail"]) == (422, True)


def test_a_head_of_another_backbone_is_loaded_once(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert served.predict(picture(), "other")[0] == 409

    def load(*_: object) -> Head:
        raise AssertionError

    monkeypatch.setattr(served.store, "load", load)
    assert served.predict(picture(), "other")[0] == 409


def test_heads_used_least_recently_leave_memory(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(served.folder / f"{name}.safetensors").stat().st_size for name in KINDS]
    monkeypatch.setattr(served.service.heads, "max_bytes", max(sizes))
    for _ in range(2):
        assert served.predict(picture(), *KINDS)[0] == 200
        assert served.service.heads._num_bytes <= max(sizes)
    monkeypatch.setattr(served.service.heads, "max_bytes", min(sizes) - 1)
    status, answer = served.predict(picture(), *KINDS)
    assert (status, "into the memory for heads" in answer["detail"]) == (422, True)
    monkeypatch.undo()
    assert served.predict(picture(), *KINDS)[0] == 200


def test_only_a_backbone_can_serve(served: Served) -> None:
    head = Head.load(served.folder / "plain.safetensors")
    merged = served.folder / "merged.onnx"
    export(head, merged, backbone=active_backbone())
    with pytest.raises(ExportError, match="has the form 'merged', expected 'backbone'"):
        Service(served.store, merged)


def test_serving_imports_no_torch(served: Served) -> None:
    import subprocess
    import sys

    program = (
        "import sys; from headkit.export.serving.http import application\n"
        "from headkit.export.serving.service import Service; from headkit import HeadStore\n"
        f"application(Service(HeadStore({served.store.url!r}), "
        f"{str(served.folder / 'backbone.onnx')!r}))\n"
        "print([m for m in ('torch', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
