"""Documents hold what they promise: their code runs, their numbers are the measured ones."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headkit.benchmarks.coverage import record as coverage
from headkit.benchmarks.pages import coverage as coverage_page
from headkit.benchmarks.pages import render as report
from headkit.benchmarks.pages.machines import machines
from headkit.benchmarks.studies.catalogue import RECORD

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    "docs/replacing-a-head.md",
    "docs/fitting.md",
    "docs/onnx.md",
    "docs/registry.md",
]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_python_blocks_run_in_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.M)
    assert blocks
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{name}, block {number}", "exec"), namespace)  # noqa: S102


@pytest.mark.parametrize("name", [*DOCUMENTS, "docs/benchmarks.md"])
def test_generated_numbers_are_those_of_the_committed_results(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- generated: " in text
    assert report.render(text) == text


def _machines(result: object) -> Iterator[dict[str, Any]]:
    if isinstance(result, dict):
        if "machine" in result:
            yield result["machine"]
        for value in result.values():
            yield from _machines(value)


@pytest.mark.parametrize("name", report.BLOCKS)
def test_every_block_of_figures_names_its_processors_and_versions(name: str) -> None:
    texts = [(ROOT / document).read_text(encoding="utf-8") for document in report.DOCUMENTS]
    blocks = [
        block
        for text in texts
        for block in re.findall(rf"<!-- generated: {name} -->(.*?)<!-- end -->", text, re.DOTALL)
    ]
    assert blocks
    result = json.loads((report.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    found = list(_machines(result))
    assert found
    for machine in found:
        for block in blocks:
            assert f"{machine['cores']} cores of {machine['processor']}" in block
            for package in ("torch", "timm"):
                assert f"{package} {machine['packages'][package]}" in block


def test_figures_of_several_machines_say_which_is_whose() -> None:
    one = {"cores": 2, "processor": "A", "packages": {"torch": "2.0", "timm": "1.0"}}
    other = {"cores": 4, "processor": "B", "packages": {"torch": "2.1", "timm": "1.0"}}
    sections = {"x": {"machine": one}, "y": {"machine": other}, "z": {"machine": one}}
    assert machines(sections) == [
        "Measured with torch 2.0 and timm 1.0 on 2 cores of A. This holds for x, z.",
        "Measured with torch 2.1 and timm 1.0 on 4 cores of B. This holds for y.",
    ]


def test_peers_name_the_machine_of_latency_and_that_of_exports_apart() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (block,) = re.findall("<!-- generated: peers -->(.*?)<!-- end -->", text, re.DOTALL)
    latency, exports = block.split("The smallest architecture of each")
    assert "Intel" in latency
    assert "Intel" not in exports
    assert exports.rstrip().splitlines()[-1].startswith("Measured with ")


def test_coverage_page_is_that_of_the_committed_record() -> None:
    page = coverage_page.page(coverage.load(RECORD))
    assert report.COVERAGE.read_text(encoding="utf-8") == page


def test_a_number_changed_by_hand_is_seen() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    changed = text.replace("| validation accuracy | 0.", "| validation accuracy | 1.")
    assert changed != text
    assert report.render(changed) == text


def test_relative_links_lead_to_files() -> None:
    for name in [
        *DOCUMENTS,
        "docs/benchmarks.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/head-file.md",
    ]:
        path = ROOT / name
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{name} links to {target}"
