"""The lowest versions that are declared are those that ``make test-lowest`` installs."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version

import pytest

from tests.shipped import ROOT

PINNED = dict(
    line.split("==")
    for line in (ROOT / "requirements-lowest.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line
)


def test_lowest_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = dict(re.split(r">=", one, maxsplit=1) for one in project["dependencies"])
    assert set(floors) == set(PINNED)
    for name, floor in floors.items():
        assert re.fullmatch(rf"{re.escape(floor)}(\.0)*", PINNED[name]), name


def test_environment_of_lowest_versions_has_them() -> None:
    """With lowest versions, all of them: a resolver that takes a newer one is noticed."""
    if version("torch").partition("+")[0] != PINNED["torch"]:
        pytest.skip("not the environment of the lowest versions")
    installed = {name: version(name).partition("+")[0] for name in PINNED}
    assert installed == PINNED
