"""The errors of headkit. They share one root, so a caller can catch all of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; if it ends in a colon, the next line, too."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:300]


class HeadkitError(Exception):
    """The root of all errors that headkit raises on purpose."""


class UnknownArchitecture(HeadkitError):
    """timm has no such model or pretrained tag."""

    @classmethod
    def with_nearest(cls, name: str, known: Iterable[str]) -> UnknownArchitecture:
        """Build the error; its message lists the ``known`` names most similar to ``name``."""
        nearest = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(nearest)}" if nearest else "`headkit models` lists all names"
        return cls(f"timm has no architecture {name!r}; {hint}")


class ContractError(HeadkitError):
    """An architecture does not behave as headkit requires."""


class WeightsError(HeadkitError):
    """Weights could not be found or downloaded, or do not fit the architecture."""


class BackboneMismatch(HeadkitError):
    """A head does not belong to the backbone: it was trained on another one."""


class HeadFormatError(HeadkitError):
    """A file is not a readable head file, or a head cannot be written to a file."""


class DataError(HeadkitError):
    """The data set is empty, incomplete or unreadable."""


class OutputError(HeadkitError):
    """A file cannot be written to the requested path."""


class ExportError(HeadkitError):
    """A model cannot be converted to ONNX, or headkit cannot run an ONNX file."""


class ParityError(ExportError):
    """The outputs of an exported model differ from those of the torch model."""


class RegistryError(HeadkitError):
    """The catalogue or the store has nothing with that name."""


class StoreError(RegistryError):
    """A store cannot be used, or a file in it is damaged."""


class SignatureError(StoreError):
    """A version has no signature by a key that its reader trusts, or a key cannot be used."""


class DependencyMissing(HeadkitError):
    """An optional package is missing; the message has the line that installs it."""

    @classmethod
    def for_feature(cls, what: str, packages: str) -> DependencyMissing:
        """Build the error for the feature ``what``, with the line that installs ``packages``."""
        # Some shells read square brackets as a pattern of file names.
        quoted = (f'"{name}"' if "[" in name else name for name in packages.split())
        return cls(f"{what} needs {packages}: pip install {' '.join(quoted)}")

    @classmethod
    def check(cls, module: str, what: str, packages: str) -> None:
        """Raise the error if ``module`` cannot be imported. Call this before any work."""
        try:
            import_module(module)
        except ImportError as missing:
            raise cls.for_feature(what, packages) from missing
