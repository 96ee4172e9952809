"""Search timm's architectures from data shipped with headkit, without importing timm.

``python -m headkit.benchmarks.studies.catalogue`` makes that data from the coverage record.
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
        name: of the tag; empty for weights without one.
        license: of the weights, as timm states it.
        top1: accuracy on ImageNet-1k in per cent, as timm's authors measured it; none where they
            did not, or where the weights have no classes.
    """

    name: str
    license: str
    top1: float | None


@dataclass(frozen=True)
class Architecture:
    """One timm entry point. What was not measured is none.

    Attributes:
        name: of the entry point.
        family: the timm module that it comes from.
        parameters: of the backbone.
        gmacs: multiply-adds of one image at ``input_size``, in thousand millions.
        num_features: width of the features.
        input_size: channels, height and width that the default weights were trained for.
        fixed_input_size: whether it takes no other.
        classifier: types of the modules that timm's ``get_classifier()`` returns.
        default_kind: kind of head that ``adapt`` chooses.
        head_bytes_per_class: of that head in float32.
        exportable: whether the export to ONNX was tried and agreed with torch.
        latency_ms: of one image on a desktop processor, as timm's authors measured it.
        tags: pretrained weights, the default ones first.
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
        """The best accuracy of the tags."""
        return max((tag.top1 for tag in self.tags if tag.top1 is not None), default=None)

    def full_names(self) -> list[str]:
        """Return the name with each of its tags behind it."""
        return [f"{self.name}.{tag.name}" if tag.name else self.name for tag in self.tags]

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Architecture:
        """Read what ``to_json`` gave."""
        tags = tuple(Tag(**tag) for tag in row["tags"])
        size = None if row["input_size"] is None else tuple(row["input_size"])
        changed = {"tags": tags, "input_size": size, "classifier": tuple(row["classifier"])}
        return cls(**{**row, **changed})


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(files(__package__).joinpath(FILE).read_text(encoding="utf-8"))
    return data


def timm_version() -> str:
    """Return the timm version that the catalogue was made from."""
    return str(_data()["timm"])


def sources() -> dict[str, Any]:
    """Return where ``top1`` and ``latency_ms`` come from."""
    return dict(_data()["sources"])


@cache
def _known() -> dict[str, Architecture]:
    rows = {row["name"]: Architecture.from_json(row) for row in _data()["architectures"]}
    try:
        installed = version("timm")
    except PackageNotFoundError:
        return rows
    if installed == timm_version():
        return rows
    logger.warning(
        "the catalogue was made from timm %s and timm %s is installed: its names come from timm, "
        "what was measured from the catalogue",
        timm_version(),
        installed,
    )
    return _asked(rows)


def _asked(rows: dict[str, Architecture]) -> dict[str, Architecture]:
    """Ask timm which architectures and tags there are; keep what is known of them."""
    import timm
    from timm.models import get_pretrained_cfg

    from headkit.adapters.compat import family_of

    found = {}
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
        tags = default_first(name, (n.partition(".")[2] for n in timm.list_pretrained(f"{name}.*")))
        unknown = {t: get_pretrained_cfg(f"{name}.{t}") for t in tags if t not in known}
        new = {t: Tag(t, (cfg and cfg.license) or "unknown", None) for t, cfg in unknown.items()}
        found[name] = replace(row, tags=tuple({**known, **new}[tag] for tag in tags))
    return found


_MEASURED = (
    *("parameters", "gmacs", "num_features", "fixed_input_size", "default_kind"),
    *("head_bytes_per_class", "exportable", "latency_ms"),
)


def default_first(name: str, tags: Iterable[str]) -> list[str]:
    """Sort the tags of an architecture as timm would choose among them."""
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
    """List the architectures that match.

    Args:
        pattern: a substring, or a glob if it has a ``*``, ``?`` or ``[``, of the name or of the
            name with a tag behind it; in the second case only the tags that match are returned.
        family: a timm module, such as ``resnet``, or a glob.
        max_params: parameters of the backbone, at most.
        input_size: height and width in pixels that the default weights were trained for.
        features: width of the features.
        license: of the weights, such as ``apache-2.0``, or a glob; other tags are left out.
        exportable: only those whose export to ONNX was tried and agreed with torch.
        pretrained: only those with pretrained weights.
        sort: ``name``, ``latency``, ``params``, ``gmacs`` (all ascending) or ``accuracy`` (the
            best first); what was not measured comes last.

    Raises:
        ValueError: ``sort`` is none of these.
    """
    if sort not in SORTS:
        raise ValueError(f"sort is {sort!r}, expected one of {', '.join(SORTS)}")
    found = []
    for known in _known().values():
        row = _matching(known, pattern)
        if license is not None and row is not None:
            row = _with_tags(row, lambda _, tag: fnmatchcase(tag.license, license))
        if (
            row is not None
            and (family is None or fnmatchcase(row.family, family))
            and (max_params is None or (row.parameters or max_params + 1) <= max_params)
            and (input_size is None or tuple(row.input_size or ())[1:] == (input_size, input_size))
            and (features is None or row.num_features == features)
            and (not exportable or row.exportable)
            and (not pretrained or row.tags)
        ):
            found.append(row)
    return sorted(found, key=_ORDER[sort])


def _last(number: float | None, sign: int = 1) -> tuple[bool, float]:
    return number is None, sign * (number or 0)


_ORDER: dict[str, Callable[[Architecture], Any]] = {
    "name": lambda row: row.name,
    "latency": lambda row: (*_last(row.latency_ms), row.name),
    "params": lambda row: (*_last(row.parameters), row.name),
    "gmacs": lambda row: (*_last(row.gmacs), row.name),
    "accuracy": lambda row: (*_last(row.top1, -1), row.name),
}


def _matching(row: Architecture, pattern: str) -> Architecture | None:
    glob = any(mark in pattern for mark in "*?[")

    def matches(name: str) -> bool:
        return fnmatchcase(name, pattern) if glob else pattern in name

    if matches(row.name):
        return row
    return _with_tags(row, lambda name, _: matches(name))


def _with_tags(row: Architecture, wanted: Callable[[str, Tag], bool]) -> Architecture | None:
    """Return the architecture with the tags that are wanted, if there are any."""
    pairs = zip(row.full_names(), row.tags, strict=True)
    tags = tuple(tag for name, tag in pairs if wanted(name, tag))
    return replace(row, tags=tags) if tags else None


def architecture(name: str) -> Architecture:
    """Return one architecture; a pretrained tag behind its name is allowed, and alone returned.

    Raises:
        UnknownArchitecture: with the nearest names or tags.
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
        has = f"nearest: {', '.join(near)}" if near else "it has none"
        raise UnknownArchitecture(f"{name} has no pretrained tag {tag!r}; {has}")
    return replace(row, tags=(row.tags[names.index(tag)],))


def nearest(pattern: str) -> list[str]:
    """Return the names that come nearest to a pattern that matches none."""
    plain = pattern.strip("*?")
    return difflib.get_close_matches(plain, list(_known()), n=3, cutoff=0.5)
