"""Check a graph before it runs: known operators only, and bounded memory and work.

headkit computes the shape of every value for a batch of one. A graph whose shapes it cannot compute
before the graph runs is refused: its sizes would depend on the image, or it has an operator that
headkit never writes, such as a loop.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from .data_rules import DATA_RULES
from .decode import Declared, Graph, Node
from .elementwise_rules import ELEMENTWISE_RULES
from .layer_rules import LAYER_RULES, MICROSOFT_RULES, SCRATCH, WORK
from .values import MAX_RANK, Rule, Value, constant_of

RULES: Mapping[str, Mapping[str, Rule]] = {
    "": {**ELEMENTWISE_RULES, **DATA_RULES, **LAYER_RULES},
    "com.microsoft": MICROSOFT_RULES,
}
"""Rules by domain and operator: the operators that a model may have."""
OPSETS = range(16, 32)
"""Versions of the default operator set that a model may have."""
MAX_BYTES, BYTES_PER_WEIGHT = 2**28, 256
"""Largest memory for the values of one image, and how much more each weight allows."""
MAX_WORK, WORK_PER_WEIGHT, WORK_PER_NUMBER = 4 * 10**9, 20_000, 4
"""Largest number of multiply-adds for one image, and how many more each weight allows.

Operators that do little with each number count as ``WORK_PER_NUMBER`` for each.
"""
RAW_SIZES = ((480, 640), (3000, 4000))
"""Heights and widths of raw images for which a graph that takes any size is checked."""
_RAW = "image"


@dataclass(frozen=True)
class Cost:
    """What a graph needs for one image.

    Attributes:
        num_bytes: Memory for its values at the peak, without weights.
        work: Multiply-adds.
        weights: Numbers in its constants.
    """

    num_bytes: int
    work: int
    weights: int


Shapes = dict[str, tuple[int, ...]]
"""Shapes of values by name."""


def check_graph(graph: Graph) -> Shapes:
    """Check the operators of a graph, its shapes, and what it needs for one image.

    Returns:
        The shapes of all values for one image.

    Raises:
        ValueError: The graph is not one that headkit writes, or it needs more memory or work than
            its weights justify.
    """
    found: Shapes = {}
    try:
        for cost, shapes in compute_costs(graph):
            _check_cost(cost)
            found = shapes
    except (TypeError, IndexError, KeyError, ArithmeticError) as error:
        raise ValueError(f"its graph is damaged: {error}") from error
    return found


def _check_cost(cost: Cost) -> None:
    most = MAX_BYTES + BYTES_PER_WEIGHT * cost.weights
    if cost.num_bytes > most:
        raise ValueError(
            f"its values take {cost.num_bytes:,} bytes per image, expected at most {most:,} for "
            f"{cost.weights:,} weights"
        )
    most = MAX_WORK + WORK_PER_WEIGHT * cost.weights
    if cost.work > most:
        raise ValueError(
            f"it takes {cost.work:,} multiply-adds per image, expected at most {most:,} for "
            f"{cost.weights:,} weights"
        )


def compute_costs(graph: Graph) -> Iterator[tuple[Cost, Shapes]]:
    """Yield what a graph needs for one image, and all shapes; for raw images, for ``RAW_SIZES``.

    Raises:
        ValueError, TypeError, IndexError, KeyError, ArithmeticError: The graph is not one that
            headkit writes.
    """
    opsets = [graph.opsets[domain] for domain in ("", "ai.onnx") if domain in graph.opsets]
    if not opsets or any(version not in OPSETS for version in opsets):
        raise ValueError(f"its operator set is {opsets}, expected {OPSETS[0]} to {OPSETS[-1]}")
    constants = {tensor.name: constant_of(tensor) for tensor in graph.tensors}
    if len(constants) < len(graph.tensors):
        raise ValueError("two of its tensors have the same name")
    free = [value for value in graph.inputs if value.name not in constants]
    is_raw = any(isinstance(size, str) for value in free for size in value.dims[1:])
    for sizes in RAW_SIZES if is_raw else RAW_SIZES[:1]:
        inputs = {value.name: Value(value.dtype, _sizes(value, sizes)) for value in free}
        values = {**constants, **_overridable(graph, constants), **inputs}
        cost = _walk(graph, values)
        yield cost, {name: value.shape for name, value in values.items()}


def _sizes(value: Declared, raw: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of an input for one image."""
    dims = list(value.dims)
    if dims and isinstance(dims[0], str):
        dims[0] = 1
    if value.name == _RAW and len(dims) == 4:
        dims[1:3] = [
            one if isinstance(dim, str) else dim for dim, one in zip(dims[1:3], raw, strict=True)
        ]
    if any(isinstance(dim, str) or not 0 < dim < 2**31 for dim in dims):
        raise ValueError(f"the input {value.name!r:.60} has the shape {list(value.dims)}")
    return tuple(int(dim) for dim in dims)


def _overridable(graph: Graph, constants: Mapping[str, Value]) -> dict[str, Value]:
    """Return the constants that a call may replace: their numbers are not known."""
    names = [value.name for value in graph.inputs if value.name in constants]
    return {name: Value(constants[name].dtype, constants[name].shape) for name in names}


def _walk(graph: Graph, values: dict[str, Value]) -> Cost:
    """Add the outputs of all nodes to the values; return what they cost."""
    weights = sum(value.size for value in values.values() if value.constant)
    last_use = {name: at for at, node in enumerate(graph.nodes) for name in node.inputs}
    kept = {output.name for output in graph.outputs} | {tensor.name for tensor in graph.tensors}
    inputs = [value for value in values.values() if not value.constant]
    live = peak = sum(value.num_bytes for value in inputs)
    work = 0
    for at, node in enumerate(graph.nodes):
        outputs, cost, scratch = _apply(node, values)
        work += cost
        for name, value in outputs.items():
            if name in values:
                raise ValueError(f"two nodes compute {name!r:.60}")
            values[name] = value
            live += value.num_bytes
        peak = max(peak, live + scratch)
        for name in {*node.inputs, *outputs}:
            done = last_use.get(name, at) <= at and name not in kept
            if done and name in values and not values[name].constant:
                live -= values[name].num_bytes
    missing = [output.name for output in graph.outputs if output.name not in values]
    if missing:
        raise ValueError(f"nothing computes its output {missing[0]!r:.60}")
    return Cost(peak, work, weights)


def _apply(node: Node, values: Mapping[str, Value]) -> tuple[dict[str, Value], int, int]:
    """Return the outputs of a node by name, its multiply-adds, and the bytes that it needs more."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    rule = RULES.get(domain, {}).get(node.operator)
    if rule is None:
        shown = f"{node.domain}.{node.operator}" if node.domain else node.operator
        raise ValueError(f"it has the operator {shown!r:.60}, which headkit never writes")
    unknown = [name for name in node.inputs if name and name not in values]
    if unknown:
        raise ValueError(f"{node.where}: nothing before it computes {unknown[0]!r:.60}")
    inputs = [values[name] if name else None for name in node.inputs]
    try:
        results = rule(node, inputs)
        work = WORK[node.operator](node, inputs, results) if node.operator in WORK else 0
        scratch = SCRATCH[node.operator](node, inputs, results) if node.operator in SCRATCH else 0
    except (ValueError, TypeError, IndexError, KeyError, ArithmeticError) as error:
        raise ValueError(f"{node.where}: {error}") from error
    names = [name for name in node.outputs if name]
    if len(names) > len(results) or any(len(one.shape) > MAX_RANK for one in results):
        raise ValueError(f"{node.where} has {len(names)} outputs, expected {len(results)}")
    constant = all(one is None or one.constant for one in inputs)
    outputs = {
        name: Value(one.dtype, one.shape, one.numbers, constant)
        for name, one in zip(node.outputs, results, strict=False)
        if name
    }
    touched = [one for one in (*inputs, *results) if one is not None and not one.constant]
    return outputs, work + WORK_PER_NUMBER * sum(one.size for one in touched), scratch


def check_locations(graph: Graph, folder: Path) -> None:
    """Check that a graph names only regular files in its folder, or missing ones, as its weights.

    Raises:
        ValueError: It names something else.
    """
    for location in {tensor.location for tensor in graph.tensors if tensor.location is not None}:
        path = PurePosixPath(location.replace("\\", "/"))
        outside = path.is_absolute() or ".." in path.parts or PureWindowsPath(location).drive
        if not path.name or not location.isprintable() or outside:
            raise ValueError(
                f"its external data are {location!r:.100}, expected a file in the folder of the "
                "model"
            )
        # Opening a named pipe would wait for a writer.
        place = folder / location
        if os.path.lexists(place) and not os.path.isfile(place):  # noqa: PTH113 - too long a name
            raise ValueError(f"its external data {location!r:.100} are not a regular file")
