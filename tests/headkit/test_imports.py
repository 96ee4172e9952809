import inspect
import json
import pydoc
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import headkit
from tests.heads import random_head

PROBE = """
import json, sys
{code}
print(json.dumps(sorted(m for m in sys.modules if m in {modules})))
"""
HEAVY = {"torch", "timm", "torchvision", "onnx", "sklearn"}


def _imported(code: str, modules: set[str] = HEAVY) -> list[str]:
    script = PROBE.format(code=code, modules=modules)
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


def _command(*arguments: object) -> str:
    words = ["headkit", *map(str, arguments)]
    return (
        f"sys.argv = {words!r}\nfrom headkit.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code"
    )


def test_import_and_help_import_nothing_heavy() -> None:
    assert _imported("import headkit") == []
    assert _imported(_command("--help")) == []
    assert _imported(_command("fit", "--help")) == []


def test_info_imports_nothing_heavy(tmp_path: Path) -> None:
    path = random_head().save(tmp_path / "digits.safetensors")
    assert _imported(_command("info", path)) == []
    assert _imported(_command("info", "resnet50")) == []
    assert _imported(_command("models", "resnet*")) == []


def test_data_imports_nothing_heavy(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "dog/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    table = tmp_path / "labels.csv"
    table.write_text("path,label\ncat/1.jpg,cat\ndog/1.jpg,dog\n")
    heavy = HEAVY | {"pandas", "onnxruntime"}
    assert _imported(_command("data", tmp_path), heavy) == []
    assert _imported(_command("data", table), heavy) == []


def test_predictor_imports_nothing_heavy() -> None:
    assert _imported("from headkit import Predictor") == []
    light = {"typer", "rich", "safetensors"}
    assert _imported("from headkit import Predictor", light) == []


def test_evaluation_of_an_exported_model_imports_nothing_heavy(tmp_path: Path) -> None:
    fixtures = Path(__file__).parents[1] / "fixtures" / "v0_1_0"
    model, images = fixtures / "models" / "resnet_merged.onnx", fixtures / "images"
    assert _imported(_command("evaluate", model, "--data", images)) == []


def test_the_cache_is_shown_and_cleared_without_heavy_imports(tmp_path: Path) -> None:
    assert _imported(_command("cache", "--cache", tmp_path)) == []
    assert _imported(_command("cache", "clear", "--cache", tmp_path)) == []


def test_the_probe_sees_heavy_imports() -> None:
    assert {"torch", "timm"} <= set(_imported("from headkit import load_backbone"))


SMALLEST_COMMAND = """
import typer

app = typer.Typer()


@app.command()
def main() -> None:
    pass


app()
"""


def test_help_takes_at_most_twice_as_long_as_that_of_the_smallest_command() -> None:
    """The two commands take turns, so that other work on the machine slows both."""

    def seconds(*arguments: str) -> float:
        start = time.perf_counter()
        command = [sys.executable, *arguments, "--help"]
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start

    turns = [(seconds("-m", "headkit"), seconds("-c", SMALLEST_COMMAND)) for _ in range(5)]
    assert statistics.median(ours / smallest for ours, smallest in turns) < 2


def test_every_public_name_loads() -> None:
    for name in headkit.__all__:
        assert getattr(headkit, name) is not None
    assert set(headkit.__all__) <= set(dir(headkit))
    with pytest.raises(AttributeError, match="nothing"):
        _ = headkit.nothing


def test_help_of_export_shows_its_arguments() -> None:
    """``headkit.export`` is a callable package, but users want the help of the function."""
    from headkit.export.exporter import export

    signature = inspect.signature(headkit.export)
    assert signature == inspect.signature(export)
    assert list(signature.parameters)[:3] == ["model_or_head", "path", "form"]
    shown = pydoc.plain(pydoc.render_doc(headkit.export))
    assert f"headkit.export{signature}" in shown
    documented = inspect.getdoc(export)
    assert documented is not None
    for line in documented.splitlines():
        assert line in shown
    for name in signature.parameters:
        assert f"{name}: " in shown


def test_importing_the_package_export_imports_nothing_heavy() -> None:
    assert _imported("import headkit.export") == []
    assert _imported("import headkit; headkit.export") == []
    assert _imported("import headkit.export.runtimes.onnxruntime") == []


def test_export_has_a_help_without_torch() -> None:
    """A deployment that only runs exported models has no torch."""
    code = (
        "import sys; sys.modules['torch'] = None; import headkit, inspect;"
        "assert 'Running an exported model' in headkit.export.__doc__;"
        "inspect.signature(headkit.export)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
