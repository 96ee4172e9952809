"""Match the tensors of a checkpoint with those of an architecture, by exact and complete names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Size, Tensor, nn

from headkit.adapters.backbone.classifier import find_classifier
from headkit.adapters.backbone.module_copy import all_tensors
from headkit.adapters.errors import WeightsError

from .read import Checkpoint

_EMA = re.compile(r"(?:^|[._])ema(?:[._]|$)")
_COUNTER = "num_batches_tracked"
"""BatchNorm's counter of batches. Eval mode does not use it, and old checkpoints lack it."""
_ANCHORS = 7


@dataclass(frozen=True)
class Wanted:
    """The tensors that an architecture needs from a checkpoint.

    Attributes:
        name: The architecture, for messages.
        backbone: Tensors of the backbone by name, without values.
        classifier_paths: Paths of the classifier's modules.
        derived: Names of tensors that the model computes itself and does not save. Older versions
            of timm saved some of them.
    """

    name: str
    backbone: Mapping[str, Tensor]
    classifier_paths: tuple[str, ...]
    derived: frozenset[str]

    @classmethod
    def of(cls, model: nn.Module, name: str) -> Wanted:
        """Describe the needs of ``model``, which may be on the meta device."""
        classifier, state = find_classifier(model), model.state_dict()
        return cls(
            name,
            {key: tensor for key, tensor in state.items() if key not in classifier.tensors},
            classifier.paths,
            frozenset(all_tensors(model)) - frozenset(state),
        )

    @property
    def required(self) -> list[str]:
        """Names without which the backbone would not be the one of the file."""
        return [name for name in self.backbone if not name.endswith(_COUNTER)]

    def is_classifier(self, name: str) -> bool:
        """Return True if a tensor of this name belongs to a classifier at the usual place."""
        return name.startswith(tuple(f"{path}." for path in self.classifier_paths))


@dataclass(frozen=True)
class Match:
    """What a checkpoint has for an architecture, below one prefix of its names.

    Attributes:
        prefix: Prefix of the names, with its dot; empty if there is none.
        backbone: The file's tensors of the backbone, under the architecture's names.
        classifier: The file's tensors at the place of the classifier.
        missing: Names of the backbone that the file lacks.
        extra: Names beside them that the architecture does not have.
        outside: Names of other tensors, next to those below the prefix.
        reshaped: Names whose shape differs.
    """

    prefix: str
    backbone: Mapping[str, Tensor]
    classifier: Mapping[str, Tensor]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    outside: tuple[str, ...]
    reshaped: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def names_agree(self) -> bool:
        """Whether the file has each tensor of the backbone by name, and no other."""
        return not self.missing and not self.extra

    @property
    def agrees(self) -> bool:
        """Whether shapes agree, too."""
        return self.names_agree and not self.reshaped


def match_names(wanted: Wanted, checkpoint: Checkpoint) -> Match:
    """Find the prefix below which a checkpoint has the backbone, and match names and shapes.

    Returns:
        The match; if nothing agrees, the one with the most names in common.

    Raises:
        WeightsError: The file has several backbones, and nothing says which of them is meant.
    """
    found = [_match(wanted, checkpoint, prefix) for prefix in _find_prefixes(wanted, checkpoint)]
    for quality in ("agrees", "names_agree"):
        complete = [match for match in found if getattr(match, quality)]
        if complete:
            return _choose(complete, checkpoint.place)
    return max(found, key=lambda match: (len(match.backbone), -len(match.extra)))


def _find_prefixes(wanted: Wanted, checkpoint: Checkpoint) -> list[str]:
    """Return the prefixes below which at least one of a few names of the backbone is found."""
    names = sorted(wanted.required, key=lambda name: (name.count("."), len(name)), reverse=True)
    anchors = names[:: max(1, len(names) // _ANCHORS)]
    prefixes = {""}
    for key in checkpoint.tensors:
        for anchor in anchors:
            if key.endswith(f".{anchor}"):
                prefixes.add(key.removesuffix(anchor))
    return sorted(prefixes, key=lambda prefix: (prefix.count("."), prefix))


def _match(wanted: Wanted, checkpoint: Checkpoint, prefix: str) -> Match:
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(prefix)
    }
    backbone = {name: inside[name] for name in wanted.backbone if name in inside}
    groups = {checkpoint.groups.get(prefix + name) for name in backbone}
    children = {name.partition(".")[0] for name in (*wanted.backbone, *wanted.classifier_paths)}

    def is_beside(name: str) -> bool:
        """Whether the model itself may have saved the tensor, and not the optimizer beside it."""
        child = name.removeprefix(prefix).partition(".")[0]
        return checkpoint.groups.get(name) in groups or (
            name.startswith(prefix) and child in children
        )

    beside = [
        name
        for name in checkpoint.tensors
        if name.removeprefix(prefix) not in backbone and is_beside(name)
    ]
    classifier, extra, outside = dict[str, Tensor](), list[str](), list[str]()
    for name in beside:
        short = name.removeprefix(prefix)
        if not name.startswith(prefix):
            outside.append(name)
        elif wanted.is_classifier(short):
            classifier[short] = checkpoint.tensors[name]
        elif short not in wanted.derived:
            extra.append(short)
    return Match(
        prefix,
        backbone,
        classifier,
        tuple(name for name in wanted.required if name not in backbone),
        tuple(extra),
        tuple(outside),
        tuple(name for name, t in backbone.items() if not _fits(t, wanted.backbone[name])),
    )


def _choose(matches: Sequence[Match], place: str) -> Match:
    """Return the match to use: the only one, or as in timm the averaged weights (EMA)."""
    distinct = list[Match]()
    for match in matches:
        if not any(_same_tensors(match.backbone, other.backbone) for other in distinct):
            distinct.append(match)
    if len(distinct) == 1:
        return distinct[0]
    averaged = [match for match in distinct if _EMA.search(match.prefix)]
    names = [match.prefix.rstrip(".") or "the top" for match in distinct]
    if len(averaged) != 1:
        raise WeightsError(
            f"{place} has the weights of {len(distinct)} models ({', '.join(names[:5])}), expected "
            f"the weights of one: save the tensors of the model that you need to a file of "
            "their own"
        )
    chosen = averaged[0].prefix.rstrip(".")
    others = ", ".join(name for name in names if name != chosen)
    note = f"used the averaged weights {chosen}, as timm does, instead of {others}"
    return Match(**{**vars(averaged[0]), "notes": (note,)})


def _same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(
        tensor is other[name] or (tensor.shape == other[name].shape and tensor.equal(other[name]))
        for name, tensor in one.items()
    )


def _fits(tensor: Tensor, expected: Tensor) -> bool:
    same_kind = tensor.is_floating_point() == expected.is_floating_point()
    return tensor.shape == expected.shape and same_kind


def explain(wanted: Wanted, match: Match, checkpoint: Checkpoint, hint: str) -> WeightsError:
    """Return the error for a match that does not agree: what is missing and what was found."""
    start = f"the tensors of {checkpoint.place} do not fit {wanted.name}"
    below = f" below {match.prefix.rstrip('.')}" if match.prefix else ""
    if match.names_agree:
        name = match.reshaped[0]
        if match.backbone[name].shape == wanted.backbone[name].shape:
            return WeightsError(
                f"{start}: {name} has integers ({match.backbone[name].dtype}), expected "
                f"floating-point numbers: convert the tensors to float32"
            )
        return WeightsError(
            f"{start}: {name} has the shape {_shape(match.backbone[name].shape)}, expected "
            f"{_shape(wanted.backbone[name].shape)}"
            + (f", and {len(match.reshaped) - 1} others also differ" if match.reshaped[1:] else "")
            + f"; {hint}"
        )
    few = len(match.backbone) < len(wanted.required) / 2
    found: Sequence[str] = match.extra
    if few:
        known = {f"{match.prefix}{name}" for name in match.backbone}
        found = [name for name in checkpoint.tensors if name not in known]
    problems = []
    if match.missing:
        problems.append(
            f"{len(match.missing)} of {len(wanted.required)} tensors of the backbone are missing"
            f"{'' if few else below}, such as {shorten(match.missing)}"
        )
    if found:
        others = "1 other" if len(found) == 1 else f"{len(found)} others"
        problems.append(f"found {others}: {shorten(found)}")
    if not match.missing:
        hint = "remove them from the file if the model does not need them"
    return WeightsError(f"{start}: {'; '.join(problems)}; {hint}")


def shorten(names: Iterable[str], count: int = 3) -> str:
    """Return a few names for a message. Characters that cannot be printed are escaped."""
    listed = list(names)
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in listed[:count])
    return shown + (", …" if len(listed) > count else "")


def _shape(shape: Size) -> str:
    return str(list(shape))
