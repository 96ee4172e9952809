"""Search timm's architectures from data shipped with headkit, without importing timm.

``python -m headkit.benchmarks.studies.catalogue`` generates that data from the coverage record.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

from headkit.adapters.errors import UnknownArchitecture

logger = logging.getLogger("headkit")

FILE = "architectures.json"
SORTS = ("name", "latency", "params", "gmacs", "accuracy")


@dataclass(frozen=True)
class Tag:
    """Pretrained weights of an architecture.

    Attributes:
        name: Name of the tag; empty for weights without a tag.
        license: License of the weights, as timm states it.
        top1: Accuracy on ImageNet-1k in per cent, as timm's authors measured it; None if they did
            not measure it or the weights have no classes.
    """

    name: str
    license: str
    top1: float | None


@dataclass(frozen=True)
class Architecture:
    """One timm entry point. Values that were not measured are None.

    Attributes:
        name: Name of the entry point.
        family: Name of the timm module that defines it.
        parameters: Number of parameters of the backbone.
        gmacs: Multiply-adds for one image at ``input_size``, in billions.
        num_features: Width of the features.
        input_size: Channels, height and width that the default weights were trained for.
        fixed_input_size: True if the architecture takes no other input size.
        classifier: Types of the modules that timm's ``get_classifier()`` returns.
        default_kind: Kind of head that ``adapt`` chooses.
        head_bytes_per_class: Bytes per class of that head in float32.
        exportable: True if the export to ONNX was tried and agreed with torch, False if it failed.
        latency_ms: Milliseconds for one image on a desktop processor, as timm's authors measured.
        tags: Pretrained weights, the default ones first.
    """

    name: str
    family: str
    parameters: int | None
    gmacs: float | None
    num_features: int | None
    input_size: tuple[int, int, int] | None
    fixed_input_size: bool | None
    classifier: tuple[str, ...]
    default_kind: str | None
    head_bytes_per_class: int | None
    exportable: bool | None
    latency_ms: float | None
    tags: tuple[Tag, ...]

    @property
    def top1(self) -> float | None:
        """Best accuracy among the tags."""
        return max((tag.top1 for tag in self.tags if tag.top1 is not None), default=None)

    def full_names(self) -> list[str]:
        """Return ``name.tag`` for each tag, or the name alone for weights without a tag."""
        return [f"{self.name}.{tag.name}" if tag.name else self.name for tag in self.tags]

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Architecture:
        """Return the architecture that ``to_json`` described."""
        tags = tuple(Tag(**tag) for tag in row["tags"])
        size = None if row["input_size"] is None else tuple(row["input_size"])
        changed = {"tags": tags, "input_size": size, "classifier": tuple(row["classifier"])}
        return cls(**{**row, **changed})


@cache
def _load_data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(files(__package__).joinpath(FILE).read_text(encoding="utf-8"))
    return data


def timm_version() -> str:
    """Return the timm version that the catalogue was generated from."""
    return str(_load_data()["timm"])


def sources() -> dict[str, Any]:
    """Return the descriptions and URLs of the sources of ``top1`` and ``latency_ms``."""
    return dict(_load_data()["sources"])


@cache
def _known() -> dict[str, Architecture]:
    rows = {row["name"]: Architecture.from_json(row) for row in _load_data()["architectures"]}
    try:
        installed = version("timm")
    except PackageNotFoundError:
        return rows
    if installed == timm_version():
        return rows
    logger.warning(
        "the catalogue was generated from timm %s, but timm %s is installed: headkit takes names "
        "and tags from the installed timm, and measured values from the catalogue",
        timm_version(),
        installed,
    )
    return _merge_with_timm(rows)


def _merge_with_timm(rows: dict[str, Architecture]) -> dict[str, Architecture]:
    """Return the architectures and tags of the installed timm, with the values known of them."""
    import timm
    from timm.models import get_pretrained_cfg

    from headkit.adapters.compat import family_of

    merged = {}
    for name in sorted(timm.list_models()):
        cfg = get_pretrained_cfg(name)
        empty = Architecture(
            name=name,
            family=family_of(name),
            input_size=None if cfg is None else tuple(cfg.input_size),
            classifier=(),
            tags=(),
            **dict.fromkeys(_MEASURED),
        )
        row = rows.get(name, empty)
        known = {tag.name: tag for tag in row.tags}
        full_names = timm.list_pretrained(f"{name}.*")
        tags = sort_tags(name, (full_name.partition(".")[2] for full_name in full_names))
        unknown = {t: get_pretrained_cfg(f"{name}.{t}") for t in tags if t not in known}
        new = {t: Tag(t, (cfg and cfg.license) or "unknown", None) for t, cfg in unknown.items()}
        merged[name] = replace(row, tags=tuple({**known, **new}[tag] for tag in tags))
    return merged


_MEASURED = (
    *("parameters", "gmacs", "num_features", "fixed_input_size", "default_kind"),
    *("head_bytes_per_class", "exportable", "latency_ms"),
)


def sort_tags(name: str, tags: Iterable[str]) -> list[str]:
    """Sort the tags of an architecture by name, timm's default tag first."""
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(name)
    default = cfg.tag if cfg is not None else ""
    return sorted(tags, key=lambda tag: (tag != default, tag))


def models(
    pattern: str = "",
    *,
    family: str | None = None,
    max_params: int | None = None,
    input_size: int | None = None,
    features: int | None = None,
    license: str | None = None,  # noqa: A002 - the word that users look for
    exportable: bool = False,
    pretrained: bool = False,
    sort: str = "name",
) -> list[Architecture]:
    """Return the architectures that match all conditions.

    Args:
        pattern: A substring of the name or of ``name.tag``, or a glob if it contains ``*``, ``?``
            or ``[``. If only ``name.tag`` matches, the result has only the matching tags.
        family: A timm module, such as ``resnet``, or a glob.
        max_params: Maximum number of parameters of the backbone.
        input_size: Height and width in pixels that the default weights were trained for.
        features: Width of the features.
        license: License of the weights, such as ``apache-2.0``, or a glob; other tags are left out.
        exportable: Return only architectures whose export to ONNX was tried and agreed with torch.
        pretrained: Return only architectures with pretrained weights.
        sort: ``name``, ``latency``, ``params``, ``gmacs`` (all ascending) or ``accuracy`` (the
            best first). Architectures without that value come last. An architecture that is called
            exactly ``pattern`` comes before all others.

    Raises:
        ValueError: ``sort`` is not one of these.
    """
    if sort not in SORTS:
        raise ValueError(f"sort is {sort!r}, expected one of {', '.join(SORTS)}")
    matching = []
    for known in _known().values():
        row = _match(known, pattern)
        if license is not None and row is not None:
            row = _keep_tags(row, lambda _, tag: fnmatchcase(tag.license, license))
        if (
            row is not None
            and (family is None or fnmatchcase(row.family, family))
            and (max_params is None or (row.parameters or max_params + 1) <= max_params)
            and (input_size is None or tuple(row.input_size or ())[1:] == (input_size, input_size))
            and (features is None or row.num_features == features)
            and (not exportable or row.exportable)
            and (not pretrained or row.tags)
        ):
            matching.append(row)
    exact = pattern.partition(".")[0]
    return sorted(matching, key=lambda row: (row.name != exact, _ORDER[sort](row)))


def _none_last(number: float | None, sign: int = 1) -> tuple[bool, float]:
    return number is None, sign * (number or 0)


_ORDER: dict[str, Callable[[Architecture], Any]] = {
    "name": lambda row: row.name,
    "latency": lambda row: (*_none_last(row.latency_ms), row.name),
    "params": lambda row: (*_none_last(row.parameters), row.name),
    "gmacs": lambda row: (*_none_last(row.gmacs), row.name),
    "accuracy": lambda row: (*_none_last(row.top1, -1), row.name),
}


def _match(row: Architecture, pattern: str) -> Architecture | None:
    """Return the architecture if its name matches, or with the tags that match, or None."""
    glob = any(mark in pattern for mark in "*?[")

    def matches(name: str) -> bool:
        return fnmatchcase(name, pattern) if glob else pattern in name

    if matches(row.name):
        return row
    return _keep_tags(row, lambda name, _: matches(name))


def _keep_tags(row: Architecture, wanted: Callable[[str, Tag], bool]) -> Architecture | None:
    """Return the architecture with only the wanted tags, or None if no tag is wanted."""
    pairs = zip(row.full_names(), row.tags, strict=True)
    tags = tuple(tag for name, tag in pairs if wanted(name, tag))
    return replace(row, tags=tags) if tags else None


def architecture(name: str) -> Architecture:
    """Return the architecture ``name``; for ``name.tag``, with that tag alone.

    Raises:
        UnknownArchitecture: timm has no such model or pretrained tag; the message has the nearest.
    """
    known = _known()
    name, _, tag = name.partition(".")
    if name not in known:
        raise UnknownArchitecture.with_nearest(name, known)
    row = known[name]
    if not tag:
        return row
    names = [one.name for one in row.tags]
    if tag not in names:
        near = difflib.get_close_matches(tag, names, n=3, cutoff=0.3) or names[:5]
        hint = f"nearest: {', '.join(near)}" if near else "it has no pretrained weights"
        raise UnknownArchitecture(f"{name} has no pretrained tag {tag!r}; {hint}")
    return replace(row, tags=(row.tags[names.index(tag)],))


def nearest(pattern: str) -> list[str]:
    """Return up to three names that are similar to a pattern."""
    plain = pattern.strip("*?")
    return difflib.get_close_matches(plain, list(_known()), n=3, cutoff=0.5)
