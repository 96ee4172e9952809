"""Documents hold what they promise: their code runs, their numbers are the measured ones."""

import re
from pathlib import Path

import pytest

from headkit.benchmarks.coverage import record as coverage
from headkit.benchmarks.pages import coverage as coverage_page
from headkit.benchmarks.pages import render as report
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
