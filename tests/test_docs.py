"""Documents hold what they promise: their code runs, their numbers are the measured ones."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from headkit.benchmarks.coverage import record
from headkit.benchmarks.pages import accuracy, coverage, render
from headkit.benchmarks.pages.machines import machines
from headkit.benchmarks.studies.catalogue import RECORD
from headkit.cli.app import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    "docs/replacing-a-head.md",
    "docs/fitting.md",
    "docs/onnx.md",
    "docs/registry.md",
]


@pytest.mark.parametrize("name", [*DOCUMENTS, "docs/data.md"])
def test_python_blocks_run_in_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.M)
    assert blocks
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{name}, block {number}", "exec"), namespace)  # noqa: S102


@pytest.mark.parametrize("name", [*DOCUMENTS, "docs/benchmarks.md", "docs/security.md"])
def test_generated_numbers_are_those_of_the_committed_results(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- generated: " in text
    assert render.render(text) == text


def _machines(result: object) -> Iterator[dict[str, Any]]:
    if isinstance(result, dict):
        if "machine" in result:
            yield result["machine"]
        for value in result.values():
            yield from _machines(value)


MEASURED = [name for name in render.BLOCKS if (render.RESULTS / f"{name}.json").exists()]


@pytest.mark.parametrize("name", MEASURED)
def test_every_block_of_figures_names_its_processors_and_versions(name: str) -> None:
    texts = [(ROOT / document).read_text(encoding="utf-8") for document in render.DOCUMENTS]
    blocks = [
        block
        for text in texts
        for block in re.findall(rf"<!-- generated: {name} -->(.*?)<!-- end -->", text, re.DOTALL)
    ]
    assert blocks
    result = json.loads((render.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    found = list(_machines(result))
    assert found
    for machine in found:
        for block in blocks:
            assert f"{machine['processor']}, {machine['cores']} cores" in block
            for package in ("torch", "timm"):
                assert f"{package} {machine['packages'][package]}" in block


def test_figures_of_several_machines_name_their_sections() -> None:
    one = {"cores": 2, "processor": "A", "packages": {"torch": "2.0", "timm": "1.0"}}
    other = {"cores": 4, "processor": "B", "packages": {"torch": "2.1", "timm": "1.0"}}
    sections = {"x": {"machine": one}, "y": {"machine": other}, "z": {"machine": one}}
    assert machines(sections) == [
        "Measured with torch 2.0 and timm 1.0 (processor: A, 2 cores). This holds for x, z.",
        "Measured with torch 2.1 and timm 1.0 (processor: B, 4 cores). This holds for y.",
    ]


def test_peers_name_the_machines_of_latency_and_of_exports() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (block,) = re.findall("<!-- generated: peers -->(.*?)<!-- end -->", text, re.DOTALL)
    latency, exports = block.split("Each exporter exports the smallest architecture")
    assert "Intel" in latency
    assert "Intel" not in exports
    assert exports.rstrip().splitlines()[-1].startswith("Measured with ")


def test_accuracy_page_is_that_of_the_committed_results() -> None:
    page = accuracy.page(render.RESULTS / "accuracy")
    assert render.ACCURACY.read_text(encoding="utf-8") == page


def test_coverage_page_is_that_of_the_committed_record() -> None:
    page = coverage.page(record.load(RECORD))
    assert render.COVERAGE.read_text(encoding="utf-8") == page


def test_a_number_changed_by_hand_is_seen() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    changed = text.replace(
        "| accuracy in cross-validation | 0.", "| accuracy in cross-validation | 1."
    )
    assert changed != text
    assert render.render(changed) == text


def _command_lines() -> list[str]:
    texts = [
        path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    ]
    blocks = [
        block
        for text in texts
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.M)
    ]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    inline = [
        " ".join(code.split()) for text in texts for code in re.findall(r"`(headkit [^`]+)`", text)
    ]
    commands = [line.partition("  #")[0].strip() for line in lines if line.startswith("headkit ")]
    return sorted({*commands, *(code for code in inline if " --" in code)})


def _command(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that words begin with, and the arguments behind it."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words:
        assert words[0] in command.commands, f"there is no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("line", _command_lines())
def test_commands_in_documents_are_those_of_the_command_line(line: str) -> None:
    command, arguments = _command(shlex.split(line)[1:])
    context = command.context_class(command)
    command.make_parser(context).parse_args(arguments)  # refuses options that do not exist


def test_an_option_that_does_not_exist_is_seen() -> None:
    command, arguments = _command(["coverage", "--export", "--catalogue", "x.json"])
    with pytest.raises(Exception, match="No such option: --catalogue"):
        command.make_parser(command.context_class(command)).parse_args(arguments)


def test_options_that_messages_name_exist() -> None:
    def options(command: Any) -> Iterator[str]:
        for parameter in command.params:
            yield from (*parameter.opts, *parameter.secondary_opts)
        for sub in getattr(command, "commands", {}).values():
            yield from options(sub)

    known = set(options(typer.main.get_command(app)))
    files = [
        path
        for folder in ("adapters", "registry", "export", "benchmarks/bench", "benchmarks/compare")
        for path in (ROOT / folder).rglob("*.py")
    ]
    named = {
        (path.name, option)
        for path in files
        for option in re.findall(r"[( ](--[a-z][a-z-]+)", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert {(name, option) for name, option in named if option not in known} == set()


def test_extras_that_messages_and_documents_name_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    for folder in ("adapters", "registry", "export", "benchmarks", "headkit"):
        files += (ROOT / folder).rglob("*.py")
    named = {
        extra
        for path in files
        for group in re.findall(
            r"(?:headkit|\.)\[([a-z0-9,]+)\]\"", path.read_text(encoding="utf-8")
        )
        for extra in group.split(",")
    }
    assert {"serve", "plot", "ray"} <= named <= extras.keys()


def test_relative_links_lead_to_files() -> None:
    for name in [
        *DOCUMENTS,
        "docs/benchmarks.md",
        "docs/data.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "docs/head-file.md",
        "docs/security.md",
    ]:
        path = ROOT / name
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{name} links to {target}"
