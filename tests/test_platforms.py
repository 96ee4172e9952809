"""What only Linux or only POSIX systems have is absent here, and headkit does its work."""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from headkit import StoreError
from headkit.adapters import files
from headkit.adapters.backbone.preprocessing import preprocessing
from headkit.adapters.features import decode
from headkit.adapters.features.transform import Transform, View
from headkit.benchmarks.bench import machine, process, run_configs
from headkit.registry.store import local_storage as module
from headkit.registry.store.local_storage import LocalStorage
from tests.backbones import random_backbone

posix = pytest.mark.skipif(os.name != "posix", reason="simulates another system on a POSIX system")


def _raise(number: int) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture(params=["missing", errno.EPERM, errno.ENOTSUP])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "missing":
        monkeypatch.delattr(os, "link")
    else:
        monkeypatch.setattr(os, "link", _raise(request.param))


@posix
@pytest.mark.usefixtures("no_links")
def test_store_without_hard_links_creates_an_object_once(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.create("a/b.json", b"first")
    with pytest.raises(FileExistsError):
        storage.create("a/b.json", b"second")
    assert storage.read("a/b.json") == b"first"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_other_errors_of_a_hard_link_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", _raise(errno.ENOSPC))
    with pytest.raises(StoreError, match="No space left"):
        LocalStorage(tmp_path).create("a/b.json", b"first")
    assert not (tmp_path / "a" / "b.json").exists()


PUBLISHER = """
import os, sys
from pathlib import Path
from headkit.registry.store.local_storage import LocalStorage
if sys.argv[3] == "no links":
    del os.link
storage, own = LocalStorage(Path(sys.argv[1])), sys.argv[2].encode() * 50_000
print("ready", flush=True)
sys.stdin.readline()
for number in range(60):
    try:
        storage.create(f"heads/a/{number}.json", own)
        print(number)
    except FileExistsError:
        assert len(set(storage.read(f"heads/a/{number}.json"))) == 1
        assert len(storage.read(f"heads/a/{number}.json")) == 50_000
"""


@posix
@pytest.mark.parametrize("links", ["links", "no links"])
def test_of_publishers_that_race_one_wins_each_object(links: str, tmp_path: Path) -> None:
    racers = {
        name: subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(tmp_path), name, links],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "abcd"
    }
    for racer in racers.values():
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    for racer in racers.values():
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = {name: racer.communicate()[0].split() for name, racer in racers.items()}
    assert all(racer.returncode == 0 for racer in racers.values())
    objects = [int(number) for numbers in won.values() for number in numbers]
    assert sorted(objects) == list(range(60))
    for name, numbers in won.items():
        for number in numbers:
            content = (tmp_path / "heads" / "a" / f"{number}.json").read_bytes()
            assert content == name.encode() * 50_000


@posix
@pytest.mark.usefixtures("no_links")
def test_lock_of_a_killed_publisher_is_gone(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.create("a/1.json", b"x")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path\n"
            "from headkit.registry.store.local_storage import _locked\n"
            "with _locked(Path(sys.argv[1])):\n"
            "    print('held', flush=True); time.sleep(600)",
            str(tmp_path / "tmp"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    storage.create("a/2.json", b"y")
    assert storage.read("a/2.json") == b"y"


@posix
def test_system_without_hard_links_and_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "link")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(StoreError, match="neither hard links nor locks"):
        LocalStorage(tmp_path).create("a/b.json", b"first")
    assert not (tmp_path / "a" / "b.json").exists()


@posix
def test_on_windows_a_rename_creates_an_object_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = type(tmp_path).rename

    def as_on_windows(source: Path, target: Path) -> Path:
        if target.exists():
            raise FileExistsError(errno.EEXIST, "Cannot create a file when that file exists")
        return rename(source, target)

    temporary, path = tmp_path / "temporary", tmp_path / "object"
    monkeypatch.setattr(type(tmp_path), "rename", as_on_windows)
    monkeypatch.setattr(os, "link", _raise(errno.EINVAL))
    monkeypatch.setattr(os, "name", "nt")
    temporary.write_bytes(b"first")
    module._move_to_new(temporary, path)
    assert path.read_bytes() == b"first"
    temporary.write_bytes(b"second")
    with pytest.raises(FileExistsError):
        module._move_to_new(temporary, path)
    assert path.read_bytes() == b"first"


@posix
def test_on_windows_a_file_that_is_open_for_a_moment_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "new", tmp_path / "old"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    replace = type(tmp_path).replace
    attempts: list[Path] = []
    slept: list[float] = []

    def as_on_windows(source: Path, target: Path) -> Path:
        attempts.append(target)
        if len(attempts) <= busy:
            raise PermissionError(errno.EACCES, "Access is denied")
        return replace(source, target)

    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(type(tmp_path), "replace", as_on_windows)
    busy = 2
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        files.move(source, target)
    assert target.read_bytes() == b"new"
    assert len(slept) == 2

    busy = 1000
    source.write_bytes(b"newer")
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        with pytest.raises(PermissionError):
            files.move(source, target)
    attempts.clear()
    with pytest.raises(PermissionError):  # elsewhere a refusal is final
        files.move(source, target)
    assert len(attempts) == 1
    assert target.read_bytes() == b"new"


@posix
def test_folder_that_cannot_be_synchronized_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        windows.setattr(os, "open", _raise(errno.EACCES))
        files.sync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", _raise(errno.EINVAL))
    files.sync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", _raise(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        files.sync_folder(tmp_path)


def test_without_prctl_a_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(_: object) -> object:
        assert sys.platform == "linux", "asked for prctl"
        return object()  # a C library without prctl

    monkeypatch.setattr(ctypes, "CDLL", library)
    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        decode.end_with_parent(0)


@pytest.mark.parametrize("view", [0, 1])
def test_what_workers_get_survives_a_spawn(view: int, tmp_path: Path) -> None:
    """macOS and Windows start workers anew and send them what they work on."""
    from PIL import Image

    Image.new("RGB", (40, 30), (200, 10, 30)).save(tmp_path / "a.png")
    cfg = preprocessing(random_backbone())
    data = decode.ImageFiles([str(tmp_path / "a.png")], Transform(cfg, View(view)))
    again = pickle.loads(pickle.dumps(data))  # noqa: S301
    first, second = data[0], again[0]
    assert first.digest == second.digest
    assert first.pixels is not None
    assert bool((first.pixels == second.pixels).all())
    for sent in (decode.collate, decode.end_with_parent):
        assert pickle.loads(pickle.dumps(sent)) is sent  # noqa: S301


def test_unreported_memory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process.peak_bytes()
    monkeypatch.setattr(process, "Path", lambda path: Path("/nowhere") / str(path).lstrip("/"))
    assert process.resident_bytes() is None
    monkeypatch.setitem(sys.modules, "resource", None)
    assert process.peak_bytes() is None


def test_cores_without_affinity_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert run_configs.cores() == os.cpu_count()
    assert machine.machine()["cores"] == os.cpu_count()


WITHOUT_POSIX = """
import builtins, importlib, os, pkgutil, sys
import fsspec, huggingface_hub.file_download, onnxruntime, onnxscript, sklearn.base, timm, torch
absent = {"fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios", "tty"}
real = builtins.__import__
def without(name, globals=None, *rest, **others):
    if name in absent and str((globals or {}).get("__name__")).startswith("headkit"):
        raise ImportError(f"{name}, imported by {globals['__name__']}, is not on Windows")
    return real(name, globals, *rest, **others)
builtins.__import__ = without
for name in ("link", "sched_getaffinity", "copy_file_range", "getuid", "fork", "sysconf"):
    delattr(os, name)
import headkit
count = 0
for found in pkgutil.walk_packages(headkit.__path__, "headkit."):
    if not found.name.startswith(("headkit.benchmarks.studies", "headkit.benchmarks.pages")):
        if found.name != "headkit.__main__":
            importlib.import_module(found.name)
            count += 1
print(count)
"""


@posix
def test_every_shipped_module_imports_without_posix() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    assert int(done.stdout) > 100


def test_output_that_the_terminal_cannot_encode_is_escaped(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['headkit', '--help']; from headkit.__main__ import main\n"
    code += "try: main()\nfinally: print('\\N{SNOWMAN}')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
    )
    assert not done.returncode, done.stderr
    assert done.stdout.decode("cp1252").strip().endswith("\\u2603")


def test_names_of_files_are_allowed_everywhere() -> None:
    root = Path(files.__file__).resolve().parents[1]
    for folder in ("adapters", "benchmarks", "docs", "export", "headkit", "registry", "tests"):
        names = [path.relative_to(root).as_posix() for path in (root / folder).rglob("*")]
        assert len({name.lower() for name in names}) == len(names)
        assert not [name for name in names if set(name) & set('<>:"\\|?*')]
