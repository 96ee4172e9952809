"""Choose the storage of a store by its URL."""

from __future__ import annotations

from pathlib import Path

from headkit.adapters.errors import RegistryError

from .local_storage import LocalStorage
from .object_storage import ObjectStorage
from .storage import Storage


def open_storage(url: str | Path) -> Storage:
    """Return the storage at ``url``: a path, a ``file://`` URL, or a URL that fsspec supports.

    Raises:
        DependencyMissing: fsspec's package for this kind of URL is not installed.
        RegistryError: fsspec does not support this kind of URL.
    """
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalStorage(Path(url))
    if "::" in text:
        raise RegistryError(f"{text} cannot hold a store: pass a single URL, not a chained one")
    return LocalStorage(Path(rest)) if scheme in ("file", "local") else ObjectStorage(text)
