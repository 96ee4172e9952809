"""Write the committed measurements into README and docs.

Run it with ``python -m headkit.benchmarks.pages.render``.

A document has blocks between ``<!-- generated: NAME -->`` and ``<!-- end -->``. ``BLOCKS[NAME]``
renders the content of such a block from ``benchmarks/results/NAME.json``. Without results, the
block is empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from headkit.adapters.files import write_atomically
from headkit.benchmarks.coverage import record
from headkit.benchmarks.studies import catalogue, freezing

from . import accuracy, benchmarks, coverage, fitting, picture, plots, registry, security
from .machines import machines, measured_with

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (
    "README.md",
    "docs/benchmarks.md",
    "docs/fitting.md",
    "docs/onnx.md",
    "docs/registry.md",
    "docs/replacing-a-head.md",
    "docs/security.md",
)
PLOTS = ROOT / "docs" / "benchmarks"

COVERAGE = ROOT / "docs" / "coverage.md"
ACCURACY = ROOT / "docs" / "accuracy.md"

_BLOCK = re.compile(r"(<!-- generated: ([\w/]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def demo(result: Mapping[str, Any]) -> str:
    """Render the results of ``headkit demo``."""
    share = result["model_bytes"] / result["head_bytes"]
    worst = max(result["difference"].values())
    lines = [
        "| measurement | result |",
        "| --- | --- |",
        f"| accuracy in cross-validation | {result['accuracy']:.4f} on {result['num_val']} "
        "images |",
        f"| duration | {result['total_seconds']:.0f} s on {result['machine']['cores']} cores |",
        f"| size of the head file | {result['head_bytes']:,} bytes; the whole model takes "
        f"{result['model_bytes']:,} bytes ({share:.0f} times as many) |",
        f"| largest difference between ONNX Runtime and torch | {worst:.1e} times the largest "
        f"logit, at batch sizes {', '.join(result['difference'])} |",
    ]
    for batch, timings in result["latency_ms"].items():
        eager, onnx = timings["torch_eager"]["median_ms"], timings["onnxruntime"]["median_ms"]
        lines.append(
            f"| latency at batch {batch}, median | torch eager {eager:.1f} ms, "
            f"ONNX Runtime {onnx:.1f} ms ({eager / onnx:.1f} times as fast) |"
        )
    return "\n".join([*lines, "", measured_with(result["machine"])])


def deployment(result: Mapping[str, Any]) -> str:
    """Render the results of the study ``deployment``."""
    graft, multi, switch = result["graft"], result["multi"], result["switch"]
    memory, pixels = result["memory"], result["pixels"]
    more = memory["bytes_with_all"] - memory["bytes_with_one"]
    lines = [
        "| measurement | result |",
        "| --- | --- |",
        f"| graft a head into {graft['architecture']} | {graft['seconds']['graft']:.3f} s; a new "
        f"export takes {graft['seconds']['export']:.1f} s ({graft['ratio']:.0f} times as long); "
        f"the logits are "
        f"{'equal, bit for bit' if graft['logits_bit_equal'] else 'NOT equal'} |",
        f"| {multi['heads']} heads in one multi model, {multi['architecture']}, batch "
        f"{multi['batch']} | takes {multi['ratio']:.3f} times as long as a model with one head |",
        f"| a different head for each call of a swappable session, batch 1 | takes "
        f"{switch['arrays']['ratio']:.3f} times as long as the same head for each call; with "
        f"adapter files, {switch['adapter_files']['ratio']:.3f} times as long |",
        f"| {memory['heads']:,} heads instead of one in a session | {more / 1e6:.0f} MB more "
        f"memory; the head files take {memory['head_files_bytes'] / 1e6:.0f} MB and load in "
        f"{memory['load_seconds']:.1f} s |",
        f"| {pixels['images']:,} images through `--preprocess`, compared with timm's transform and "
        f"torch, {pixels['architecture']} | the same class for {pixels['same_class']:.2%} of the "
        f"images; pixels differ by {pixels['mean_pixel_difference']:.1e} of their range on "
        f"average, and by {pixels['largest_pixel_difference']:.1e} at most |",
        "",
        f"| precision, {result['precision']['architecture']} on digits | MB | ms, batch 1 | ms, "
        "batch 16 | same class | accuracy |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in result["precision"]["precisions"].items():
        cost = row["cost"]
        first = result["precision"]["precisions"]["int8"]["cost"]["accuracy_before"]
        same, accuracy = (
            ("", first) if cost is None else (f"{cost['agreement']:.2%}", cost["accuracy_after"])
        )
        lines.append(
            f"| {name} | {row['bytes'] / 1e6:.1f} | {row['latency_ms_batch_1']['median_ms']:.1f} "
            f"| {row['latency_ms_batch_16']['median_ms']:.1f} | {same} | {accuracy:.4f} |"
        )
    return "\n".join([*lines, "", "The times are medians of alternating runs.", *machines(result)])


BLOCKS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "demo": demo,
    "fitting": fitting.table,
    "deployment": deployment,
    "freezing": freezing.table,
    "peers": benchmarks.peers,
    "peers_epyc": partial(benchmarks.peers, plot="peers_epyc"),
    "speed": benchmarks.speed,
    "tasks": benchmarks.tasks,
    "growth": benchmarks.growth,
    "publishing": registry.publishing,
    "serving": registry.serving,
    "security/fuzzing": security.fuzzing,
    "security/kills": security.kills,
    "security/serving": security.serving,
}


def render(text: str) -> str:
    """Return a document with all generated blocks rendered again.

    Raises:
        KeyError: The document has a block with an unknown name.
    """

    def render_block(match: re.Match[str]) -> str:
        name = match[2]
        path = RESULTS / f"{name}.json"
        if not path.exists():
            return f"{match[1]}{match[3]}"
        content = BLOCKS[name](json.loads(path.read_text(encoding="utf-8")))
        return f"{match[1]}{content}\n{match[3]}" if content else f"{match[1]}{match[3]}"

    return _BLOCK.sub(render_block, text)


def main() -> None:
    """Render all documents."""
    for name in DOCUMENTS:
        path = ROOT / name
        write_atomically(path, render(path.read_text(encoding="utf-8")).encode())
        print(path.relative_to(ROOT))
    write_atomically(COVERAGE, coverage.page(record.load(catalogue.RECORD)).encode())
    print(COVERAGE.relative_to(ROOT))
    write_atomically(ACCURACY, accuracy.page(RESULTS / "accuracy").encode())
    print(ACCURACY.relative_to(ROOT))
    for path in (picture.main(RESULTS, ROOT / "docs"), *plots.draw(RESULTS, PLOTS)):
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
