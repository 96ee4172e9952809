"""Objects of a store: records, tags, ``store.json`` and their keys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

from headkit.adapters.errors import HeadkitError
from headkit.adapters.heads.head import Head
from headkit.registry.store import records
from headkit.registry.store.store import HeadStore

from ..mutations import parts
from ..mutations.byte_edits import edit_bytes
from ..mutations.json_values import edit_json
from ..seeds import SeedFiles
from .door import Door

_NAMES = ("shares", "shadow", "checksum", "previous", "signature", "name", "version", "digest")
_DIGEST = "sha256:" + "0" * 8
"""A reference to a head that some inputs have."""
_KEYS = (
    *("heads/a/0.json", "heads/a/01.json", "heads/a/999999999.json", "heads/a/99999999999999.json"),
    *("heads/A/1.json", "heads/a/b/1.json", "heads/a/1.yanked", "heads/a/.tag", "heads/a/x y.tag"),
    *(
        "heads/1.json",
        "heads/a/latest.tag",
        "heads/a/1.tag",
        "blobs/00/" + "0" * 64 + ".safetensors",
    ),
    *("trash/00/" + "0" * 64 + ".safetensors", "blobs/x", "other", "heads/\u202e/1.json"),
)


def open_door(seeds: SeedFiles, folder: Path) -> Door:
    """See ``doors.open_door``."""
    valid = [_write_valid(seeds, folder / f"valid-{version}", version) for version in ("1", "2")]
    root = folder / "store"

    def enter(content: bytes) -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for key, one in parts.split(content).items():
            path = root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(one)
        store = HeadStore(root)
        refused = None
        for use in (
            store.list,
            store.verify,
            lambda: store.resolve("a@prod"),
            lambda: store.load("a"),
            lambda: store.load("a@1"),
            lambda: store.versions("a"),
            lambda: store.tags("a"),
            lambda: store.resolve(_DIGEST),
            lambda: store.gc(grace_seconds=0, force=True),
        ):
            try:
                use()
            except HeadkitError as error:
                refused = refused if str(error).endswith(f"no head {_DIGEST}") else error
        if refused is not None:
            raise refused

    return Door(valid, _change, enter)


def _write_valid(seeds: SeedFiles, root: Path, version: str) -> bytes:
    root.mkdir()
    if version == "1":
        (root / "store.json").write_text('{"format": "headkit-store", "version": "1"}')
    store = HeadStore(root)
    head = Head.load(seeds.folder / "resnet-own.safetensors")
    store.publish(head, "a", tags=["prod"], publisher="fuzzer")
    store.publish(head.with_changes(notes="second"), "a", publisher="fuzzer")
    store.yank("a@2")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return parts.join({path.relative_to(root).as_posix(): path.read_bytes() for path in files})


def _change(content: bytes, random: Random) -> bytes:
    files = parts.split(content)
    for _ in range(random.choice((1, 1, 2))):
        texts = [key for key in files if key.endswith((".json", ".tag", ".yanked"))]
        key = random.choice(texts)
        action = random.random()
        if action < 0.75:
            files[key] = _edit_object(files[key], random)
        elif action < 0.82:
            files[key] = edit_bytes(files[key], random)
        elif action < 0.9:
            files[random.choice(_KEYS)] = files[key]
        elif action < 0.95:
            del files[key]
        else:
            blob = random.choice([name for name in files if name.startswith("blobs/")])
            files[blob] = edit_bytes(files[blob], random)
    return parts.join({key: one for key, one in files.items() if not _hides(key, files)})


def _hides(key: str, files: dict[str, bytes]) -> bool:
    """Return True if the key is also the folder of another key, which no directory can have."""
    return any(other.startswith(f"{key}/") for other in files)


def _edit_object(content: bytes, random: Random) -> bytes:
    """Change JSON values; mostly, the object gets the checksum of the new values."""
    try:
        text = edit_json(content.decode(), random, _NAMES)
        values = json.loads(text)
        if isinstance(values, dict) and "checksum" in values and random.random() < 0.7:
            del values["checksum"]
            text = json.dumps({**values, "checksum": records._checksum(values)})
    except (ValueError, RecursionError):
        pass
    else:
        return text.encode("utf-8", "surrogatepass")
    return edit_bytes(content, random)
