"""Search timm's architectures from data shipped with headkit.

``python -m headkit.registry.catalogue`` writes that data anew from the installed timm.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files

from ..adapters.errors import UnknownArchitecture
from ..adapters.files import write_atomically

_FILE = "architectures.json"


@dataclass(frozen=True)
class Architecture:
    """One timm entry point.

    Attributes:
        name: of the entry point.
        family: the timm module that it comes from.
        tags: pretrained tags, the default one first.
        input_size: channels, height and width that the default weights were trained for.
    """

    name: str
    family: str
    tags: tuple[str, ...]
    input_size: tuple[int, int, int]


@cache
def _load() -> tuple[str, dict[str, Architecture]]:
    data = json.loads(files(__package__).joinpath(_FILE).read_text(encoding="utf-8"))
    rows = (
        Architecture(r["name"], r["family"], tuple(r["tags"]), tuple(r["input_size"]))
        for r in data["architectures"]
    )
    return data["timm"], {row.name: row for row in rows}


def timm_version() -> str:
    """Return the timm version that the catalogue was made from."""
    return _load()[0]


def models(pattern: str = "", family: str | None = None) -> list[Architecture]:
    """List the architectures whose name matches, in alphabetical order.

    Args:
        pattern: a substring, or a glob if it has a ``*`` or ``?``.
        family: a timm module, such as ``resnet``.
    """
    glob = any(mark in pattern for mark in "*?[")
    return [
        row
        for name, row in _load()[1].items()
        if (fnmatchcase(name, pattern) if glob else pattern in name)
        and (family is None or row.family == family)
    ]


def architecture(name: str) -> Architecture:
    """Return one architecture; a pretrained tag behind its name is allowed.

    Raises:
        UnknownArchitecture: with the nearest names.
    """
    known = _load()[1]
    name = name.partition(".")[0]
    if name not in known:
        raise UnknownArchitecture.named(name, known)
    return known[name]


def generate() -> str:
    """Return the catalogue's data, made from the installed timm, as JSON text."""
    import timm
    from timm.models import get_pretrained_cfg
    from timm.models._registry import _model_to_module

    rows = []
    for name in sorted(timm.list_models()):
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
        cfg = get_pretrained_cfg(name)
        default = cfg.tag if cfg is not None else ""
        tags.sort(key=lambda tag: (tag != default, tag))
        size = cfg.input_size if cfg is not None else (3, 224, 224)
        rows.append(
            {
                "name": name,
                "family": _model_to_module[name],
                "tags": tags,
                "input_size": list(size),
            }
        )
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    return f'{{"timm":"{timm.__version__}","architectures":[\n{lines}\n]}}\n'


if __name__ == "__main__":
    print(write_atomically(str(files(__package__).joinpath(_FILE)), generate().encode()))
