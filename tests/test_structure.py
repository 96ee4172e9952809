"""The house: small rooms, small modules, and names that need no prefix."""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from tests.shipped import ROOT, shipped_modules

LINKS = ("adapters", "benchmarks", "export", "registry")
MOST_MODULES, MOST_LINES, MOST_SHARED = 14, 400, 2


def _modules_of_folders() -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for path in map(Path, shipped_modules()):
        folders.setdefault(path.parent.as_posix(), [])
        if path.name != "__init__.py":
            folders[path.parent.as_posix()].append(path.stem)
    return folders


def shared_prefixes(names: list[str]) -> dict[str, list[str]]:
    """Prefixes before an underscore, and first words of four letters or more, of three names."""
    known = {prefix for name in names if (prefix := name.partition("_")[0]) != name}
    known |= {name for name in names if len(name) >= 4}
    shared = {p: [n for n in names if n == p or n.startswith(f"{p}_")] for p in known}
    return {prefix: found for prefix, found in shared.items() if len(found) > MOST_SHARED}


@pytest.mark.parametrize("folder", sorted(_modules_of_folders()))
def test_folder_is_a_small_room_of_names_without_prefixes(folder: str) -> None:
    names = _modules_of_folders()[folder]
    assert len(names) <= MOST_MODULES, f"{folder} has {len(names)} modules: {sorted(names)}"
    assert not shared_prefixes(names)


def test_modules_are_short() -> None:
    lines = {
        name: len((ROOT / name).read_text(encoding="utf-8").splitlines())
        for name in shipped_modules()
    }
    assert len(lines) > 100
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


def test_prefix_of_three_names_is_seen() -> None:
    assert shared_prefixes(["solver", "solver_path", "solver_ridge", "fold"]) == {
        "solver": ["solver", "solver_path", "solver_ridge"]
    }
    assert "to" in shared_prefixes(["to_a", "to_b", "to_c"])
    assert not shared_prefixes(["fold", "folder", "folders", "cli_a", "cli_b"])


@pytest.mark.parametrize("name", LINKS)
def test_package_is_a_link_to_the_folder_at_the_top(name: str) -> None:
    link = ROOT / "headkit" / name
    assert link.is_symlink()
    assert link.readlink().as_posix() == f"../{name}"
    assert link.samefile(ROOT / name)


def test_only_these_packages_are_links() -> None:
    """Each file stands in one place of the source tree, under one import name."""
    links = [path.name for path in (ROOT / "headkit").iterdir() if path.is_symlink()]
    assert sorted(links) == sorted(LINKS)
    files = Counter(path.resolve() for name in LINKS for path in (ROOT / name).rglob("*.py"))
    assert not [path for path, count in files.items() if count > 1]


def test_workflow_tests_the_pythons_and_systems_that_the_project_names() -> None:
    yaml = pytest.importorskip("yaml")
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    prefix = "Programming Language :: Python :: 3."
    named = [one.removeprefix(prefix[:-2]) for one in project["classifiers"] if prefix in one]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert matrix["python"] == named
    assert {one.partition("-")[0] for one in matrix["system"]} == {"ubuntu", "windows", "macos"}
    configure, checkout = jobs["test"]["steps"][:2]
    assert configure["run"] == "git config --global core.symlinks true"
    assert checkout["uses"].startswith("actions/checkout@")
    assert set(jobs["publish"]["needs"]) == set(jobs) - {"publish"}


def test_no_test_file_imports_from_another() -> None:
    """What two of them need stands in a module of its own, or in conftest.py as a fixture."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                last = (node.module or "").rpartition(".")[2]
                modules = {last, *(alias.name for alias in node.names if node.module == "tests")}
                if any(name == "conftest" or name.startswith("test_") for name in modules):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_one_module_makes_folders_and_asks_what_paths_are() -> None:
    """Only ``adapters.files`` turns what the system refuses into errors with path and reason."""
    door = {"adapters/files.py", "adapters/temporary.py", "registry/store/local_storage.py"}
    outside = (
        "benchmarks/studies/",
        "benchmarks/pages/",
        "benchmarks/bench/",
        "benchmarks/coverage/",
    )
    methods = {"is_file", "is_dir", "exists", "mkdir", "write_text"}
    functions = {"TemporaryDirectory", "mkdtemp", "NamedTemporaryFile", "save_file", "mkstemp"}
    forbidden = functions | methods
    found = []
    for name in ("adapters", "registry", "export", "headkit", "benchmarks"):
        for path in sorted((ROOT / name).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if place in door or place.startswith(outside):
                continue
            text = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    owner, _, name_called = called.rpartition(".")
                    if name_called in (forbidden if owner else functions) and owner != "entry":
                        found.append(f"{place}:{node.lineno} {called}")
    assert found == []
