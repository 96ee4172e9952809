"""Serving: open a backbone and the heads of a store, as ``headkit serve`` does, and answer once."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from pathlib import Path
from random import Random

from headkit.adapters.heads.head import Head
from headkit.export.serving.service import Service
from headkit.registry.store.layout import STORE, blob_key, describe_head, encode_json, record_key
from headkit.registry.store.records import Version, encode_record
from headkit.registry.store.store import HeadStore

from ..mutations import parts
from ..mutations.images import draw_images
from ..mutations.onnx_models import edit_model
from ..seeds import SeedFiles
from .door import Door
from .head_file import edit_head
from .model import write_neighbours

IMAGE = draw_images()[0]


def open_door(seeds: SeedFiles, folder: Path) -> Door:
    """See ``doors.open_door``."""
    model, root = folder / "backbone.onnx", folder / "store"
    description = describe_head(Head.load(seeds.folder / "resnet-own.safetensors"))
    write_neighbours(folder)

    def enter(content: bytes) -> None:
        given = parts.split(content)
        model.write_bytes(given.pop("model"))
        shutil.rmtree(root, ignore_errors=True)
        _write_store(root, given, description)
        service = Service(HeadStore(root), model, threads=1)
        asyncio.run(_answer(service, [*given]))

    valid = []
    for name in ("resnet", "vit", "deit"):
        heads = {f"head-{number}": head for number, head in enumerate(seeds.heads(name))}
        valid.append(parts.join({"model": seeds.read(f"{name}-backbone.onnx"), **heads}))
    return Door(valid, _change, enter)


def _change(content: bytes, random: Random) -> bytes:
    given = parts.split(content)
    key = "model" if random.random() < 0.6 else random.choice([*given][1:])
    edit = edit_model if key == "model" else edit_head
    return parts.join({**given, key: edit(given[key], random)})


def _write_store(root: Path, heads: dict[str, bytes], description: object) -> None:
    """Write a store by hand: ``publish`` would refuse some of the heads."""
    files = {STORE: encode_json({"format": "headkit-store", "version": "2"})}
    for name, content in heads.items():
        digest = hashlib.sha256(content).hexdigest()
        version = Version(
            *(name, 1, digest, max(len(content), 1), "2026-01-01T00:00:00+00:00", "fuzzer", "", ""),
            head=description,  # type: ignore[arg-type]
        )
        files[blob_key(digest)] = content
        files[record_key(name, 1)] = encode_record(version, chained=True)
    for key, content in files.items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


async def _answer(service: Service, names: list[str]) -> None:
    await service.start()
    try:
        await service.predict(IMAGE, ["*"])
        await service.predict(IMAGE, names[:1])
    finally:
        await service.stop()
