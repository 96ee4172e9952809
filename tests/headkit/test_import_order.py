"""Nothing happens by import: what was imported before changes neither a fit nor a public name."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.backbones import SMALL
from tests.images import write_shapes

PROGRAM = """
import hashlib, importlib, inspect, json, pkgutil, sys
from pathlib import Path

import headkit

weights, data, folder, before = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
missing = []


def importable(name):
    try:
        return importlib.import_module(name)
    except (ImportError, headkit.DependencyMissing) as error:
        missing.append(f"{name}: {error}")


if before == "everything":
    importable("headkit.export.exporter")
    for module in pkgutil.walk_packages(headkit.__path__, "headkit."):
        if not module.name.endswith("__main__"):
            importable(module.name)
imported = sorted(name for name in sys.modules if name.startswith("headkit."))

cache = folder / "cache"
head = headkit.fit("SMALL", data, weights=weights, cache=cache, workers=0)
path = head.save(folder / "head.safetensors")
(key,) = cache.glob("features/*/key.json")
exported = headkit.export(path, folder / "model.onnx", weights=weights)
print(json.dumps({
    "imported": imported,
    "missing": missing,
    "same": {
        "key": json.loads(key.read_text()),
        "cache": key.parent.name,
        "head": hashlib.sha256(path.read_bytes()).hexdigest(),
        "model": hashlib.sha256(exported.path.read_bytes()).hexdigest(),
        "info": headkit.info(path),
        "signatures": {
            name: str(inspect.signature(getattr(headkit, name)))
            for name in ("fit", "info", "export")
        },
        "callable": [callable(getattr(headkit, name)) for name in ("fit", "info", "export")],
    },
}))
""".replace("SMALL", SMALL)


@pytest.fixture(scope="module")
def processes(
    small_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Return the reports of two fresh processes, one of which imported every module first."""
    root = tmp_path_factory.mktemp("import_order")
    data = write_shapes(root / "images", images=90)  # more than are too few for ONNX Runtime
    reports = {}
    for before in ("nothing", "everything"):
        (root / before).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, small_weights, data, root / before, before],
            env={**os.environ, "SOURCE_DATE_EPOCH": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        reports[before] = json.loads(done.stdout.splitlines()[-1])
    return reports


def test_the_second_process_imported_every_module(processes: dict[str, dict[str, Any]]) -> None:
    root = Path(__file__).parents[2]
    every = {
        ".".join(("headkit", *file.relative_to(root).with_suffix("").parts))
        for folder in ("adapters", "benchmarks", "export", "registry")
        for file in (root / folder).rglob("*.py")
        if file.stem != "__main__"
    }
    every = {name.removesuffix(".__init__") for name in every}
    unable = {line.partition(":")[0] for line in processes["everything"]["missing"]}
    assert every - unable <= set(processes["everything"]["imported"])
    assert len(unable) < 10, unable
    assert len(processes["nothing"]["imported"]) < 10


def test_runtime_cache_key_and_head_do_not_depend_on_what_was_imported(
    processes: dict[str, dict[str, Any]],
) -> None:
    bare, full = processes["nothing"]["same"], processes["everything"]["same"]
    assert bare["key"]["engine"]["name"] == full["key"]["engine"]["name"] == "onnxruntime"
    assert bare["key"] == full["key"]
    assert bare["cache"] == full["cache"]
    assert bare["head"] == full["head"]


def test_fit_info_and_export_are_functions_whatever_was_imported(
    processes: dict[str, dict[str, Any]],
) -> None:
    bare, full = processes["nothing"]["same"], processes["everything"]["same"]
    assert bare["callable"] == full["callable"] == [True, True, True]
    for name in ("signatures", "info", "model"):
        assert bare[name] == full[name], name
    assert "model_or_head" in full["signatures"]["export"]
    assert "runtime: 'str' = 'auto'" in full["signatures"]["fit"]
