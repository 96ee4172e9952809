"""Generate the catalogue's data from the coverage record and measurements of timm's authors.

Run ``python -m headkit.benchmarks.studies.catalogue``. It writes ``registry/architectures.json`` at
its end and takes seconds. The measurements of timm's authors come from the study ``timm_results``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import timm

from headkit.adapters.compat import family_of
from headkit.adapters.files import write_atomically
from headkit.benchmarks.coverage.contract import Row
from headkit.benchmarks.coverage.record import Key, load
from headkit.registry import catalogue
from headkit.registry.catalogue import Architecture, Tag, sort_tags

from .timm_results import RESULT as TIMM_RESULTS

RECORD = Path(__file__).parents[1] / "results" / "coverage.jsonl"
"""The committed coverage record."""


def write(rows: dict[Key, Row], path: Path) -> Path:
    """Write the catalogue's data to ``path``; see ``render``."""
    return write_atomically(path, render(rows).encode())


def render(rows: dict[Key, Row]) -> str:
    """Return the catalogue's data as JSON, one line for each architecture of the installed timm.

    Args:
        rows: Rows of the coverage record. Values that it does not have are null.
    """
    by_check: dict[str, dict[str, Row]] = defaultdict(dict)
    for (name, check), row in rows.items():
        if row["passed"] or check == "export":
            by_check[check][name] = row
    measured = json.loads(TIMM_RESULTS.read_text(encoding="utf-8"))
    values = {key: measured[key]["values"] for key in ("top1", "latency_ms")}
    sources = {
        key: {
            "what": measured[key]["what"],
            "url": f"{measured['repository']}/blob/{measured['commit']}/{measured[key]['file']}",
        }
        for key in values
    }
    entries = [_architecture(name, by_check, values) for name in sorted(timm.list_models())]
    lines = ",\n".join(json.dumps(row.to_json(), separators=(",", ":")) for row in entries)
    head = json.dumps({"timm": timm.__version__, "sources": sources})
    return f'{head[:-1]}, "architectures": [\n{lines}\n]}}\n'


def _architecture(
    name: str, by_check: dict[str, dict[str, Row]], values: dict[str, dict[str, float]]
) -> Architecture:
    row = by_check["structure"].get(name, {})
    tags = sort_tags(name, row.get("tags", ()))
    names = [f"{name}.{tag}" if tag else name for tag in tags]
    latencies = (values["latency_ms"].get(full) for full in [*names, name])
    export = by_check["export"].get(name)
    size = row.get("input_size")
    return Architecture(
        name=name,
        family=family_of(name),
        parameters=row.get("parameters"),
        gmacs=by_check["macs"].get(name, {}).get("gmacs"),
        num_features=row.get("num_features"),
        input_size=None if size is None else (size[0], size[1], size[2]),
        fixed_input_size=row.get("fixed_input_size"),
        classifier=tuple(row.get("classifier", ())),
        default_kind=row.get("default_kind"),
        head_bytes_per_class=row.get("head_bytes_per_class"),
        exportable=None if export is None else export["passed"],
        latency_ms=next((one for one in latencies if one is not None), None),
        tags=tuple(
            Tag(tag, row["tags"][tag], values["top1"].get(full))
            for tag, full in zip(tags, names, strict=True)
        ),
    )


def main() -> None:
    """Write the catalogue of the installed timm."""
    print(write(load(RECORD), Path(catalogue.__file__).parent / catalogue.FILE))


if __name__ == "__main__":
    main()
