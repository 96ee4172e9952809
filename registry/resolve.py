"""The one place that resolves references: what takes a head file takes a reference to a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headkit.adapters.errors import (
    DependencyMissing,
    HeadkitError,
    RegistryError,
    SignatureError,
    StoreError,
    UnknownArchitecture,
)
from headkit.adapters.files import is_file

from .catalogue import architecture
from .store.reference import DIGEST, looks_like_reference

if TYPE_CHECKING:  # running an exported model needs no safetensors
    from headkit.adapters.heads.head import Head


def head_file(word: str | Path, store: str | Path | None = None) -> Path:
    """Return the path of the head file that a path or a reference names.

    An existing file comes first. A word that has the form of a reference (docs/registry.md) is
    then fetched from the store into the cache. Any other word is returned as a path.

    Args:
        word: path of a head file, or a reference such as ``flowers@prod``.
        store: URL of the store; the user's own without it, see ``HeadStore``.

    Raises:
        RegistryError: ``word`` has the form of a reference, and the store has no such head.
        SignatureError: ``$HEADKIT_VERIFY_WITH`` names keys, and none of them signed the version.
        DependencyMissing: the store's URL needs a package that is not installed.
    """
    path = Path(word)
    if is_file(path) or not looks_like_reference(str(word)):
        return path
    from .store.store import HeadStore

    try:
        return HeadStore(store).pull(str(word))
    except SignatureError:
        raise
    except RegistryError as error:
        raise RegistryError(
            f"there is no file {word}, and looking it up in the store failed: {error}"
        ) from error


def load_head(head: Head | str | Path) -> Head:
    """Return a head: the one that is given, or the one that a path or a reference names.

    Raises:
        RegistryError, DependencyMissing: see ``head_file``.
        HeadFormatError: see ``Head.load``; or it is something else.
    """
    from headkit.adapters.errors import HeadFormatError
    from headkit.adapters.heads.head import Head

    if isinstance(head, Head):
        return head
    if not isinstance(head, str | Path):
        raise HeadFormatError(
            f"the head is a {type(head).__name__}, expected a head, the path of a head file, or a "
            "reference to a head in a store; head_of(model) is the head of a model"
        )
    return Head.load(head_file(head))


def head_name(word: str | Path) -> str:
    """Return the name of a head in a model of many heads.

    That is the stem of its file, or the name under which it was published: ``flowers`` for both
    ``heads/flowers.safetensors`` and ``flowers@prod``.
    """
    path = Path(word)
    if path.suffix in (".safetensors", ".onnx_adapter"):
        return path.stem
    return path.name.removeprefix(DIGEST).partition("@")[0]


def head_file_or_architecture(word: str | Path) -> Path | None:
    """Return the head file that a word names, or None if the word is an architecture.

    A word of the form of a head file, version, tag or digest is a head. Any other word is an
    architecture if timm has it, and else a head.

    Raises:
        UnknownArchitecture: timm has no such architecture, and there is no such head.
        RegistryError: the word names a version, tag or digest that the store does not have.
    """
    if _looks_like_head(str(word)):
        return head_file(word)
    try:
        architecture(str(word))
    except UnknownArchitecture:
        try:
            path = head_file(word)
        except (StoreError, DependencyMissing):
            raise
        except HeadkitError:
            path = Path(word)
        if not is_file(path):
            raise
        return path
    return None


def _looks_like_head(text: str) -> bool:
    return text.endswith(".safetensors") or "@" in text or text.startswith(DIGEST)
