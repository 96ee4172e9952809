"""Render ``docs/coverage.md`` from the coverage record."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from headkit.benchmarks.coverage.contract import Row
from headkit.benchmarks.coverage.record import Key

from .wording import MISSING, reword

HEAD = """# Coverage

For each architecture of timm {timm}, this page shows whether it passes headkit's checks, which
test that the adapter layer works with it and that it can be exported to ONNX. `make docs`
generates the page from `benchmarks/results/coverage.jsonl`. The command
`headkit coverage --structure --macs --fresh --out benchmarks/results/coverage.jsonl` writes that
file from scratch. More runs add to it. They replace the first three options with
`--numeric --max-params 1000M`, with `--export --smallest`, with `--export --max-params 30M`, with
`--levels`, with `--level-maps --smallest`, with `--level-export --smallest`, with `--tuning`, and
with `--tuning-merged --smallest`.

| check | architectures | passed | what it checks |
| --- | --- | --- | --- |
{summary}

**structure** runs on the meta device, without weights. It finds the classifier, replaces it with
classifiers for n, 0 and m classes, compares its tensors with those of plain timm, and installs each
kind of head.

**numeric** runs on real tensors with random weights. `classify(features(x))` may differ from
`model(x)` by at most 1e-5 times the largest logit; the largest difference is {worst}. A saved
head must compute the same logits, bit for bit, in a fresh model. Training steps in train mode must
change the head and nothing else. The features must not change when the classifier is removed. The
check uses images that are smaller than the architecture's default input if the architecture accepts
them.

**export** converts backbone and head to ONNX with random weights, at the architecture's default
input size, with branches fused if timm can fuse them. It compares ONNX Runtime with torch at batch
sizes 1, 3 and 8; the tolerance is 1e-4 times the largest logit. {exported}

{untried}

**levels** runs on the meta device, except for the models that timm cannot run there. It finds the
modules whose outputs timm's `forward_intermediates` returns. All but the deepest are the levels
that a head may read; if there are more than six, three of them are. {levels}

**level_maps** runs on real tensors with random weights. The map of each level must equal, bit for
bit, what `forward_intermediates` returns. Where timm applies a ReLU to a copy of the module's
output (`legacy_xception`, `nasnetalarge`, `pnasnet5large`), the map must equal it after that ReLU.
The vector of each level may differ from its definition by at most 1e-5 times the largest value; the
largest difference is {worst_level}. The logits must be the same, bit for bit, with hooks on the
levels and without them.

**level_export** converts a backbone with all its levels as outputs to ONNX, with random weights,
and compares as **export** does. The tolerance is 1e-4 times the largest value of an output, and the
largest difference is {worst_export}. {exported_levels}

**tuning** runs on the meta device. It counts the values of the backbone's vectors, such as biases,
norms and layer scales, which the method `affine` trains in every architecture. {vectors}

**tuning_merged** runs on real tensors with random weights. It trains the changes of `affine` for
two steps. They must change what the delta says and nothing else. The logits of a fresh backbone
with the merged delta may differ by at most 1e-5 times the largest logit, or, if that is more, by
twice the difference between float32 and float64; the largest difference is {worst_merged}.
{merged_families} {shares}

{failures}

The columns of the tables are:

- **M**: parameters without the classifier, in millions.
- **GMAC**: multiply-adds for one image at the input size, in billions.
- **features**: width of the features.
- **input**: height and width of the input; an asterisk marks a fixed input size.
- **classifier**: types of the modules of timm's classifier.
- **kind**: kind of head that `adapt` chooses.
- **B/class**: bytes per class of that head in float32.
- **levels**: paths of the modules whose outputs are the levels; a number after a colon is an item
  of a module's output.
- **tags**: pretrained tags with their licences.
- **s, n, e, l, x**: results of structure, numeric, export, level_maps and level_export: ✓ passed,
  ✗ failed, - not checked.
"""


def page(rows: dict[Key, Row]) -> str:
    """Return the page in Markdown."""
    by_check: dict[str, dict[str, Row]] = defaultdict(dict)
    for (name, check), row in sorted(rows.items()):
        by_check[check][name] = row
    structure, numeric = by_check["structure"], by_check["numeric"]
    sections = [
        HEAD.format(
            timm=next(iter(structure.values()))["timm"],
            summary="\n".join(
                _summary(check, by_check[check], what)
                for check, what in (
                    ("structure", "the adapter layer works, without weights"),
                    ("numeric", "the adapter layer works, on real tensors"),
                    ("export", "ONNX Runtime agrees with torch"),
                    ("macs", "multiply-adds can be counted"),
                    ("levels", "levels can be looked for"),
                    ("level_maps", "levels are what timm returns"),
                    ("level_export", "ONNX Runtime agrees with torch in all levels"),
                    ("tuning", "the backbone has vectors to train"),
                    ("tuning_merged", "a merged delta gives the logits of the training"),
                )
            ),
            worst=_worst(numeric),
            untried=_untried(structure, numeric),
            exported=_exported(structure, by_check["export"]),
            levels=_levels(structure, by_check["levels"]),
            worst_level=_worst(by_check["level_maps"]),
            exported_levels=_families_tried(structure, by_check["level_export"]),
            worst_export=_worst(by_check["level_export"]),
            vectors=_vectors(structure, by_check["tuning"]),
            worst_merged=_worst(by_check["tuning_merged"]),
            merged_families=_families_tried(structure, by_check["tuning_merged"]),
            shares=_shares(by_check["tuning_merged"]),
            failures=_failures(by_check),
        )
    ]
    families: dict[str, list[str]] = defaultdict(list)
    for name, row in structure.items():
        families[row["family"]].append(name)
    for family, names in sorted(families.items()):
        sections.append(f"## {family}\n")
        sections.append(
            "| architecture | M | GMAC | features | input | classifier | kind | B/class | levels "
            f"| tags | s, n, e, l, x |\n{'| --- ' * 11}|"
        )
        sections.append("\n".join(_line(name, by_check) for name in names) + "\n")
    return "\n".join(sections)


def _summary(check: str, rows: dict[str, Row], what: str) -> str:
    passed = sum(row["passed"] for row in rows.values())
    return f"| {check} | {len(rows)} | {passed} | {what} |"


def _families_tried(structure: dict[str, Row], rows: dict[str, Row]) -> str:
    tried = {row["family"] for row in rows.values()}
    families = {row["family"] for row in structure.values()}
    return f"The check has run for {len(tried)} of {len(families)} families."


LARGE_DELTA = 0.02
"""Share of a backbone's bytes above which the page names the architecture."""


def _vectors(structure: dict[str, Row], rows: dict[str, Row]) -> str:
    """Return what share of the backbones their vectors are."""
    shares = [
        row["vectors"] / structure[name]["parameters"]
        for name, row in rows.items()
        if row["passed"]
    ]
    if not shares:
        return ""
    return f"Their share of the backbone is {median(shares):.2%} in the median architecture."


def _shares(rows: dict[str, Row]) -> str:
    """Return how large the deltas are, and which are large."""
    shares = {name: row["share"] for name, row in rows.items() if row["passed"]}
    if not shares:
        return ""
    large = [f"`{name}` {share:.1%}" for name, share in shares.items() if share > LARGE_DELTA]
    text = (
        f"In the median architecture, the delta has {median(shares.values()):.2%} of the bytes of "
        "the backbone."
    )
    return f"{text} It has more than {LARGE_DELTA:.0%} in {', '.join(large)}." if large else text


def _worst(rows: dict[str, Row]) -> str:
    """Return the largest difference of the architectures that passed."""
    found = [row["difference"] for row in rows.values() if row["passed"]]
    return f"{max(found):.1e}" if found else MISSING


def _untried(structure: dict[str, Row], numeric: dict[str, Row]) -> str:
    sizes = [row["parameters"] for name, row in structure.items() if name not in numeric]
    if not sizes:
        return "The numeric check covers every architecture."
    return (
        f"The numeric check leaves out {len(sizes)} architectures; the smallest of them has "
        f"{min(sizes) / 1e6:.0f} million parameters."
    )


def _exported(structure: dict[str, Row], export: dict[str, Row]) -> str:
    passed = [row for row in export.values() if row["passed"]]
    if not passed:
        return "No architecture passed."
    worst = max(row["difference"] for row in passed)
    small = [name for name, row in structure.items() if row["parameters"] <= 30e6]
    tried = sum(name in export for name in small)
    families = {structure[row["name"]]["family"] for row in passed}
    known = len({row["family"] for row in structure.values()})
    opsets = ", ".join(str(opset) for opset in sorted({row["opset"] for row in passed}))
    return (
        f"The check covers {tried} of the {len(small)} architectures with at most 30 million "
        f"parameters. At least one architecture passed in {len(families)} of {known} families. The "
        f"largest difference is {worst}, and the opset is {opsets}."
    )


def _levels(structure: dict[str, Row], levels: dict[str, Row]) -> str:
    """Return how many architectures have levels, and which have none and why."""
    found = {name: row for name, row in levels.items() if row["passed"]}
    having = [name for name, row in found.items() if row["levels"]]
    text = f"{len(having)} of {len(found)} architectures have levels."
    unchecked = len(structure) - len(levels)
    if unchecked:
        text += f" {unchecked} architectures have not been checked yet."
    lines = [f"- `{name}`: {row['reason']}" for name, row in found.items() if not row["levels"]]
    return "\n".join([f"{text} These have none:", "", *lines]) if lines else text


def _failures(by_check: dict[str, dict[str, Row]]) -> str:
    failed = [
        f"- `{name}`, {check}: {reword(row['error'])}"
        for check, rows in sorted(by_check.items())
        for name, row in rows.items()
        if not row["passed"]
    ]
    return "\n".join(["Failed checks:", "", *failed]) if failed else "No check failed."


def _line(name: str, by_check: dict[str, dict[str, Row]]) -> str:
    row = by_check["structure"][name]
    marks = "".join(
        _mark(by_check[check].get(name))
        for check in ("structure", "numeric", "export", "level_maps", "level_export")
    )
    if not row["passed"]:
        return f"| {name} | | | | | | | | | | {marks} |"
    gmacs = by_check["macs"].get(name, {}).get("gmacs")
    size = "x".join(map(str, row["input_size"][1:])) + ("*" if row["fixed_input_size"] else "")
    modules = f"{row['modules']} " if row["modules"] > 1 else ""
    return (
        f"| {name} | {row['parameters'] / 1e6:.1f} | {'' if gmacs is None else f'{gmacs:.2f}'} "
        f"| {row['num_features']} | {size} | {modules}{', '.join(row['classifier'])} "
        f"| {row['default_kind']} | {row['head_bytes_per_class']:,} "
        f"| {_names(by_check['levels'].get(name))} | {_tags(row['tags'])} | {marks} |"
    )


def _names(levels: Row | None) -> str:
    """Return the names of the levels; ``-`` if they were not looked for."""
    if levels is None or not levels["passed"]:
        return "-"
    return ", ".join(level["name"] for level in levels["levels"]) or "none"


def _mark(row: Row | None) -> str:
    return "-" if row is None else "✓" if row["passed"] else "✗"


def _tags(tags: dict[str, str]) -> str:
    """Return the tags, grouped by licence."""
    by_licence: dict[str, list[str]] = defaultdict(list)
    for tag, licence in tags.items():
        by_licence[licence].append(tag)
    return "; ".join(f"{', '.join(names)} ({licence})" for licence, names in by_licence.items())
