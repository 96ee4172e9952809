"""The errors of headkit: one root, so that a caller can catch all that is raised on purpose."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module


def first_line(error: BaseException) -> str:
    """Return the first line of what another library says, and the next where it ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:300]


class HeadkitError(Exception):
    """Root of all errors that headkit raises on purpose."""


class UnknownArchitecture(HeadkitError):
    """The name is no timm entry point, or the tag is none of its pretrained weights."""

    @classmethod
    def with_nearest(cls, name: str, known: Iterable[str]) -> UnknownArchitecture:
        """Build the error with the names of ``known`` that come nearest to ``name``."""
        nearest = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(nearest)}" if nearest else "`headkit models` lists all names"
        return cls(f"timm has no architecture {name!r}; {hint}")


class ContractError(HeadkitError):
    """An architecture does not behave as the adapter layer requires."""


class WeightsError(HeadkitError):
    """Weights could not be found, fetched or fitted to the architecture."""


class BackboneMismatch(HeadkitError):
    """A head was trained on another backbone than the one it is attached to."""


class HeadFormatError(HeadkitError):
    """A file is not a readable head file, or a head cannot be written as one."""


class DataError(HeadkitError):
    """The data set is empty, incomplete or unreadable."""


class OutputError(HeadkitError):
    """A file cannot be written where it was asked for."""


class ExportError(HeadkitError):
    """A model could not be converted to ONNX, or an ONNX file is not one that headkit can run."""


class ParityError(ExportError):
    """An exported model does not agree with the torch model it came from."""


class RegistryError(HeadkitError):
    """A reference names nothing in the catalogue or in a store."""


class StoreError(RegistryError):
    """A store cannot be used, or what lies in it is damaged."""


class DependencyMissing(HeadkitError):
    """An optional package is needed; the message carries the line that installs it."""

    @classmethod
    def for_feature(cls, what: str, packages: str) -> DependencyMissing:
        """Build the error for ``what`` with the pip line that installs ``packages``."""
        # Some shells take square brackets for a pattern of file names.
        quoted = (f'"{name}"' if "[" in name else name for name in packages.split())
        return cls(f"{what} needs {packages}: pip install {' '.join(quoted)}")

    @classmethod
    def check(cls, module: str, what: str, packages: str) -> None:
        """Raise the error unless ``module`` can be imported: before any work, not after it."""
        try:
            import_module(module)
        except ImportError as missing:
            raise cls.for_feature(what, packages) from missing
