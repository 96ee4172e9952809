"""The checksum of a head file: it finds a damaged file, and one that somebody changed by hand.

It protects from accidents. Whoever changes a file on purpose can compute a new one; signatures of
a store (docs/registry.md) protect from that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from headkit.adapters.bounds import describe
from headkit.adapters.errors import HeadFormatError

from .dtypes import dtype_name

CHECKSUM = "checksum"
"""Key of the checksum in the metadata of a head file."""


def compute_checksum(text: str, tensors: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """Return the SHA-256 of a text and of tensors, 64 hexadecimal digits; see docs/head-file.md.

    Args:
        text: The description of the tensors, as a file stores it.
        tensors: Arrays by name; their order makes no difference.
    """
    digest = hashlib.sha256(f"{text}\n".encode())
    for name, tensor in sorted(tensors.items()):
        array = np.asarray(tensor)
        shape = ",".join(map(str, array.shape))
        digest.update(f"{name}\t{dtype_name(array)}\t{shape}\n".encode())
        little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def check_checksum(
    metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    """Raise ``HeadFormatError`` if a file is not what its writer wrote.

    Version 1 has no checksum, and other writers of version 2 may leave it out.
    """
    if metadata["version"] == "1":
        return
    expected = metadata.get(CHECKSUM)
    if expected is None:
        # Otherwise, a flipped bit in the word "checksum" would take the check away.
        unknown = sorted(set(metadata) - {"format", "version", "head"})
        if unknown:
            raise HeadFormatError(
                f"its metadata has the unknown key {describe(unknown[0])} and no {CHECKSUM!r}: "
                "the file is damaged, or another program wrote it"
            )
    elif expected != compute_checksum(metadata["head"], tensors):
        types = ", ".join(sorted({dtype_name(tensor) for tensor in tensors.values()}))
        raise HeadFormatError(
            f"its description and its {types} tensors do not match its {CHECKSUM!r}: the file "
            "is damaged or was changed. Get it again; if you changed it with another program, "
            f"remove {CHECKSUM!r} from its metadata"
        )
