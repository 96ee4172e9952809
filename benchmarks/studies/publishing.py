"""Measure simultaneous publishers, one of which is killed, and the speed of listing and searching.

Run ``python -m headkit.benchmarks.studies.publishing [SECTION …]`` with any of the sections
``local``, ``s3``, ``listing`` and ``search``; the default is all. It writes
``benchmarks/results/publishing.json`` after each section and keeps the other sections, so that an
interrupted run can continue with the remaining sections. Needs ``headkit[dev]``.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from headkit.adapters.heads.head import Head
from headkit.benchmarks.bench.timing import Timing
from headkit.registry.store.store import HeadStore

from .heads import make_head
from .s3_server import BUCKET, s3_server
from .sections import run_sections

RESULT = Path(__file__).parents[1] / "results" / "publishing.json"
PROCESSES, VERSIONS, REPEATS = 8, 50, 20
HEADS = 10_000
CALLS = 15


def local(folder: Path) -> dict[str, Any]:
    """Publish one name from many processes in a directory."""
    return crowd(str(folder / "store"), folder, dict(os.environ))


def s3(folder: Path) -> dict[str, Any]:
    """Publish one name from many processes on an S3 endpoint."""
    with s3_server() as environment:
        os.environ.update(environment)
        return crowd(f"s3://{BUCKET}/store", folder, {**os.environ, **environment})


def crowd(
    url: str,
    folder: Path,
    environment: dict[str, str],
    *,
    processes: int = PROCESSES,
    versions: int = VERSIONS,
    repeats: int = REPEATS,
) -> dict[str, Any]:
    """Publish from several processes at once, kill one of them, and repeat this.

    Returns:
        Number of versions that were ``acknowledged`` to the publishers, that the store has
        (``found``), and that are ``lost`` although acknowledged; number of ``gaps`` in the version
        numbers; ``problems`` that ``verify`` reports; and how often at the same time a tag was
        ``resolved``, or was not (``unresolved``).
    """
    path = make_head(0, 512).save(folder / "head.safetensors")
    store = HeadStore(url)
    total = {"acknowledged": 0, "found": 0, "lost": 0, "gaps": 0, "resolved": 0, "unresolved": 0}
    killed = []
    generator = random.Random(0)  # noqa: S311  (no secret)
    start = time.perf_counter()
    for repeat in range(repeats):
        name = f"head-{repeat}"
        store.publish(path, name, tags=["prod"])
        command = [sys.executable, "-m", __spec__.name, "publish", url, name, str(path)]
        logs = [folder / f"{repeat}-{number}.log" for number in range(processes)]
        running = []
        for number, log in enumerate(logs):
            with log.open("w") as file:
                arguments = [*command, str(versions), str(number)]
                running.append(subprocess.Popen(arguments, stdout=file, env=environment))
        victim, after = running[0], generator.randrange(1, versions)
        while any(one.poll() is None for one in running):
            if victim.poll() is None and len(_read_acknowledged(logs[0])) >= after:
                time.sleep(generator.random() * 0.02)  # a random moment of the next publication
                victim.send_signal(signal.SIGKILL)
            try:
                total["unresolved"] += store.resolve(f"{name}@prod").name != name
                total["resolved"] += 1
            except Exception:
                total["unresolved"] += 1
            time.sleep(0.01)
        for one in running[1:]:
            if one.returncode:
                raise RuntimeError(f"a publisher ended with status {one.returncode}")
        acknowledged = [number for log in logs for number in _read_acknowledged(log)]
        killed.append(len(_read_acknowledged(logs[0])))
        (entry,) = store.list(name)
        total["acknowledged"] += len(acknowledged)
        total["found"] += len(entry.versions) - 1
        total["lost"] += len(set(acknowledged) - set(entry.versions))
        total["lost"] += len(acknowledged) - len(set(acknowledged))
        total["gaps"] += max(entry.versions) - len(entry.versions)
    seconds = time.perf_counter() - start
    return {
        "processes": processes,
        "versions": versions,
        "repeats": repeats,
        "published_before_the_kill": killed,
        **total,
        "problems": store.verify(),
        "seconds": round(seconds, 1),
    }


def _read_acknowledged(log: Path) -> list[int]:
    lines = log.read_text().split("\n")[:-1]  # the last line may be incomplete
    return [int(line) for line in lines]


def _publish(url: str, name: str, path: str, versions: int, number: int) -> None:
    """Publish heads that all differ; print the number of each version after its publication."""
    store, head = HeadStore(url), Head.load(path)
    own_path = Path(path).with_name(f"{name}-{number}.safetensors")
    for count in range(versions):
        replace(head, notes=f"{number} {count}").save(own_path)
        version = store.publish(own_path, name, tags=["prod"], publisher=str(number))
        print(version.version, flush=True)


def listing(folder: Path) -> dict[str, Any]:
    """Time listing a store of very many heads, within a process and with the command line."""
    store = HeadStore(folder / "store")
    path = make_head(0, 512).save(folder / "head.safetensors")
    for number in range(HEADS):
        store.publish(path, f"head-{number:05}", tags=["prod"])
    command = [sys.executable, "-m", "headkit", "heads", "list", "--store", store.url]
    return {
        "heads": HEADS,
        "list_ms": _time_calls(lambda: len(HeadStore(store.url).list())).to_json(),
        "command_ms": _time_calls(lambda: _run(command)).to_json(),
    }


def search(_folder: Path) -> dict[str, Any]:
    """Time ``headkit models``, including the start of Python, and importing timm, in turns."""
    ours, theirs = list[float](), list[float]()
    for _ in range(CALLS):
        ours.append(_milliseconds(lambda: _run([sys.executable, "-m", "headkit", "models", "vit"])))
        theirs.append(_milliseconds(lambda: _run([sys.executable, "-c", "import timm"])))
    return {
        "command_ms": Timing.from_samples(ours).to_json(),
        "import_timm_ms": Timing.from_samples(theirs).to_json(),
    }


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _time_calls(call: Callable[[], object]) -> Timing:
    call()
    return Timing.from_samples([_milliseconds(call) for _ in range(CALLS)])


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


SECTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "local": local,
    "s3": s3,
    "listing": listing,
    "search": search,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["publish"]:
        _publish(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
    else:
        run_sections(__doc__, RESULT, SECTIONS)
