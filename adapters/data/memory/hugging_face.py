"""Read a ``datasets.Dataset`` of Hugging Face; workers decode its images."""

from __future__ import annotations

from typing import Any

import numpy as np

from headkit.adapters.errors import DataError

from .images import source_of


class ColumnImages:
    """The images of one column; ``self[i]`` is encoded bytes, a path, or an array of pixels."""

    def __init__(self, dataset: Any, column: str) -> None:
        self.dataset, self.column = dataset, column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        image = self.dataset[index][self.column]
        return np.array(image, np.uint8) if isinstance(image, list) else source_of(image)


def read_hugging_face(dataset: Any, where: str) -> tuple[Any, Any, tuple[str, ...]]:
    """Return the images, the labels and the names of the classes of one split.

    Args:
        dataset: A ``datasets.Dataset`` with a column of images, called ``image`` or of type
            ``Image``, and a column of labels, called ``label`` or of type ``ClassLabel``.
        where: Name of the data for messages.

    Raises:
        DataError: It is streamed, or has no such columns.
    """
    if not hasattr(dataset, "__len__"):
        raise DataError(
            f"{where} is streamed: load it without streaming=True, or pass its name as hfids/NAME"
        )
    if not len(dataset):
        raise DataError(f"{where} has no images")
    from headkit.adapters.data.timm_readers import find_columns  # imports timm

    image, label = find_columns(dataset.features, where)
    # Formats and transforms of the user would decode the images or turn them into tensors.
    plain = dataset.with_format(None)
    kind, feature = (plain.features[column] for column in (image, label))
    if type(kind).__name__ == "Image":
        plain = plain.cast_column(image, type(kind)(decode=False))
    labels = list(plain[label])
    names = getattr(getattr(feature, "feature", feature), "names", None) or ()
    if type(kind).__name__ == "Value":
        return list(plain[image]), labels, tuple(names)
    return ColumnImages(plain.select_columns([image]), image), labels, tuple(names)
