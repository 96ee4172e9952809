"""Choose ONNX Runtime's execution providers by headkit's names or by ONNX Runtime's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

from headkit.adapters.errors import DependencyMissing, ExportError

from .table import Provider, providers

try:
    import onnxruntime as ort
except ImportError as missing:
    raise DependencyMissing.for_feature("running an exported model", "onnxruntime") from missing

ProviderName = str | tuple[str, Mapping[str, Any]]
"""A provider's name, or ONNX Runtime's pair of a name and options."""
ProviderOptions = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""Options of the first provider, or one mapping per provider."""

_SUFFIX = "ExecutionProvider"


@dataclass(frozen=True)
class Providers:
    """The providers of a session, in the order in which they take operators of the graph.

    Attributes:
        names: Their names in headkit.
        executions: ONNX Runtime's names of the providers.
        options: Options of each provider.
        device: Device of the first provider's tensors, as ``OrtValue`` calls it.
    """

    names: tuple[str, ...]
    executions: tuple[str, ...]
    options: tuple[Mapping[str, str], ...]
    device: str

    @property
    def device_id(self) -> int:
        """Number of the device of the first provider."""
        return int(self.options[0].get("device_id", 0))


def choose_providers(
    provider: ProviderName | Sequence[ProviderName] = "cpu",
    provider_options: ProviderOptions | None = None,
) -> Providers:
    """Return the providers that a user named.

    Args:
        provider: Name of a provider, in any case: a key of ``table.providers()``, or any of ONNX
            Runtime's own, such as ``CUDAExecutionProvider``, also without ``ExecutionProvider``.
            A list is ONNX Runtime's: the first provider must start, and the others take the
            operators that it does not support. No provider of the list may be missing.
        provider_options: Options of the first provider; for a list, also one mapping per provider.

    Raises:
        ExportError: A name is unknown, or the options do not fit the providers.
        DependencyMissing: A provider is not installed.
    """
    listed: Sequence[ProviderName]
    if isinstance(provider, str) or _is_pair(provider):
        listed = [provider]
    else:
        listed = cast("Sequence[ProviderName]", provider)
    if not isinstance(listed, Sequence) or not listed:
        raise ExportError(
            f"provider is {provider!r}, expected a name such as 'cpu' or a list of names"
        )
    chosen = [_find(one[0] if _is_pair(one) else one) for one in listed]
    options = _options(listed, provider_options)
    for (name, one), own_options in zip(chosen, options, strict=True):
        _check_installed(name, one, alone=len(chosen) == 1)
        if own_options and one.execution == "CPUExecutionProvider":  # which ignores all of them
            raise ExportError(
                f"the provider 'cpu' has no options, found {', '.join(own_options)}: omit them "
                "(threads=N sets the number of threads)"
            )
    return Providers(
        tuple(name for name, _ in chosen),
        tuple(one.execution for _, one in chosen),
        tuple(options),
        chosen[0][1].device,
    )


def _find(name: object) -> tuple[str, Provider]:
    """Return headkit's name of a provider, and its row."""
    known = providers()
    for execution in ort.get_all_providers():
        short = execution.removesuffix(_SUFFIX).lower()
        if all(one.execution != execution for one in known.values()):
            known[short] = Provider(execution, package="")
    wanted = name.lower() if isinstance(name, str) else ""
    for key, one in known.items():
        if wanted in (key, one.execution.lower()):
            return key, one
    raise ExportError(
        f"provider is {name!r}, expected one of {', '.join(providers())}, or one of ONNX Runtime's "
        "own names, such as 'CPUExecutionProvider'"
    )


def _check_installed(name: str, provider: Provider, *, alone: bool) -> None:
    available = ort.get_available_providers()
    if provider.execution in available:
        return
    if provider.package:
        missing = DependencyMissing.for_feature(f"the provider {name!r}", provider.package)
    else:
        missing = DependencyMissing(
            f"the provider {name!r} needs a build of ONNX Runtime with {provider.execution}; the "
            f"installed one has {', '.join(available)}"
        )
    if alone:
        raise missing
    raise DependencyMissing(
        f"{missing}. headkit does not fall back to the next provider in a list: leave "
        f"{name!r} out to run without it"
    )


def _options(
    listed: Sequence[ProviderName], provider_options: ProviderOptions | None
) -> list[dict[str, str]]:
    """Return the options of each provider as ONNX Runtime takes them: texts by name."""
    paired = [one[1] if _is_pair(one) else {} for one in listed]
    if provider_options is None:
        given: list[Any] = paired
    elif any(paired):
        raise ExportError(
            "options of a provider are given twice: pass them either beside its name or as "
            "provider_options"
        )
    elif isinstance(provider_options, Mapping):
        given = [provider_options, *({} for _ in listed[1:])]
    else:
        given = list(provider_options) if isinstance(provider_options, Sequence) else [None]
        if len(given) != len(listed):
            raise ExportError(
                f"provider_options has {len(given)} entries for {len(listed)} providers: pass one "
                "mapping for each"
            )
    for one in given:
        if not isinstance(one, Mapping):
            raise ExportError(
                f"provider_options is {provider_options!r}, expected a mapping such as "
                "{'device_id': 1}"
            )
    return [{str(key): str(value) for key, value in one.items()} for one in given]


def _is_pair(value: object) -> TypeGuard[tuple[str, Mapping[str, Any]]]:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], Mapping)
    )
