"""The distributions hold what users run, and that works without the checkout."""

from __future__ import annotations

import email
import email.message
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.wheel import LIST, ROOT, TREE, build, copy_tree, files, unpack


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    return build("wheel", tree, tree.parent / "wheel")


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_wheel_holds_the_listed_files(wheel: Path) -> None:
    """After a module came, went or moved: ``make wheel-files``."""
    assert files(wheel) == LIST.read_text(encoding="utf-8").split()


def test_wheel_holds_no_study_page_result_or_test(wheel: Path) -> None:
    for name in files(wheel):
        assert name.startswith("headkit/")
        parts = set(Path(name).parts)
        assert not parts & {"studies", "pages", "results", "tests", "docs", "s3_server.py"}, name


def test_wheel_from_the_source_distribution_is_the_same(tree: Path, wheel: Path) -> None:
    other = unpack(build("sdist", tree, tree.parent / "sdist"), tree.parent / "unpacked")
    again = build("wheel", other, tree.parent / "again")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as two:
        contents = [{name: a.read(name) for name in a.namelist()} for a in (one, two)]
    assert contents[0] == contents[1]


def test_links_of_the_readme_are_absolute(metadata: email.message.Message) -> None:
    text = metadata.get_payload(decode=True).decode()  # type: ignore[union-attr]
    targets = re.findall(r"\]\(([^)]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    assert targets
    for target in map("".join, targets):
        assert re.match(r"https://|#", target), target
    relative = re.findall(r"\]\((?!https:|#)([^)]+)\)", (ROOT / "README.md").read_text("utf-8"))
    for target in relative:
        assert re.search(rf"\(https://[^)]+/HEAD/{re.escape(target)}\)", text), target


def test_metadata_name_addresses_and_pythons(metadata: email.message.Message) -> None:
    assert {url.split(",")[0] for url in metadata.get_all("Project-URL", [])} >= {
        "Source",
        "Documentation",
        "Changelog",
        "Issues",
    }
    classifiers = metadata.get_all("Classifier", [])
    for minor in range(11, 15):
        assert f"Programming Language :: Python :: 3.{minor}" in classifiers
    assert "Typing :: Typed" in classifiers


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_links_that_git_wrote_as_text_stop_the_build(kind: str, tmp_path: Path) -> None:
    copy_tree(tmp_path)
    link = tmp_path / "headkit" / TREE[0]
    assert link.is_symlink()
    link.unlink()
    link.write_text(f"../{TREE[0]}")
    with pytest.raises(RuntimeError, match="headkit/adapters: found no folder") as caught:
        build(kind, tmp_path, tmp_path / "out")
    assert "core.symlinks true" in str(caught.value)


class Installed:
    """The wheel in an environment of its own, which sees the packages of this one."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.folder = folder / "elsewhere"
        self.folder.mkdir()
        venv.create(folder / "venv", with_pip=False)
        scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        self.python, self.command = scripts / "python", scripts / "headkit"
        pip = ("-m", "pip", "--disable-pip-version-check", "--quiet", "--python", self.python)
        self.run(sys.executable, *pip, "install", "--no-deps", "--no-index", wheel)
        # Paths of a .pth file come after the environment's own, so that its headkit wins.
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        own = Path(self.run(self.python, "-c", where).strip())
        shared = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        (own / "shared.pth").write_text("\n".join(shared))

    def run(self, *command: object) -> str:
        environment = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
        environment["HEADKIT_CACHE"] = str(self.folder / "cache")
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.returncode, done.stderr
        return done.stdout

    def headkit(self, *arguments: object) -> Any:
        return json.loads(self.run(self.command, *arguments, "--json"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("installed"))


@pytest.mark.slow
def test_wheel_works_outside_the_checkout(installed: Installed, metadata: Any) -> None:
    code = "import headkit; print(headkit.__file__, headkit.__version__)"
    file, version = installed.run(installed.python, "-c", code).split()
    assert not Path(file).is_relative_to(ROOT)
    assert version == metadata["Version"]

    headkit = installed.headkit
    made = headkit("demo", "--images-per-class", 12)["files"]
    assert Path(installed.folder / made["model"]).is_file()
    backbone = f"tf_efficientnet_lite0={made['weights']}"

    fit = ("fit", "--backbone", "tf_efficientnet_lite0", "--weights", made["weights"])
    head = headkit(*fit, "--data", made["data"], "--out", "head.safetensors")
    assert head["accuracy"] > 0.5
    export = ("export", "head.safetensors", "--out", "model.onnx", "--weights", made["weights"])
    assert headkit(*export)["model"] == "model.onnx"
    image = next((installed.folder / made["data"] / "3").iterdir())
    [row] = headkit("predict", "model.onnx", image)
    assert row["predictions"][0]["label"] in set("0123456789")
    compared = headkit(
        *("compare", "--data", made["data"], "--backbones", backbone, "--out", "compared")
    )
    assert compared["rows"][0]["score"] > 0.5
    short = ("--repeats", 1, "--rounds", 1, "--cold-starts", 1, "--batches", "1")
    measured = headkit("bench", "model.onnx", *short, "--runtimes", "onnxruntime", "--out", "bench")
    assert measured["rows"]
    assert {row["name"] for row in headkit("models", "resnet18")} >= {"resnet18"}
    assert headkit("coverage", "--structure", "--only", "test_resnet")["passed"] == {"structure": 1}
    assert headkit("info", "head.safetensors")["num_classes"] == 10
    assert "missing" in headkit("doctor")
    for command in ("serve", "heads", "graft"):
        assert "Usage" in installed.run(installed.command, command, "--help")
