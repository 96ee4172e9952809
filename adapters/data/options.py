"""Options that decide how labeled data are read where more than one reading is possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from headkit.adapters.errors import DataError

ClassFrom = Literal["top", "parent"]


@dataclass(frozen=True)
class ReadOptions:
    """The user's word on how to read folders and tables; None leaves it to the data.

    Attributes:
        class_from: The folder that names the class of an image: ``top``, the one directly under
            the root, or ``parent``, the one that holds the image.
        path_column: Name of the column of image paths.
        label_column: Name of the column of labels; or several names, separated by commas or in a
            list, of one column per class or output.
        label_separator: Text between the labels, or the numbers, of one image.
    """

    class_from: ClassFrom | None = None
    path_column: str | None = None
    label_column: str | Sequence[str] | None = None
    label_separator: str | None = None

    def __post_init__(self) -> None:
        if self.class_from not in (None, *get_args(ClassFrom)):
            raise ValueError(f"class_from is {self.class_from!r}, expected 'top' or 'parent'")
        if self.label_separator == "":
            raise ValueError("label_separator is empty, expected the text between two labels")

    def check_used(self, *, folder: bool, table: bool, where: str) -> None:
        """Raise ``DataError`` if an option is set that applies to none of the data.

        Args:
            folder: True if some of the data are a folder with one folder per class.
            table: True if some of the data are a table, such as a CSV.
            where: The data, as messages name them.
        """
        if self.class_from is not None and not folder:
            raise DataError(
                f"class_from (--class-from) is {self.class_from!r}, but {where} is not a folder of "
                "class folders: omit this option"
            )
        columns = {
            "path_column (--path-column)": self.path_column,
            "label_column (--label-column)": self.label_column,
            "label_separator (--label-separator)": self.label_separator,
        }
        for name, value in columns.items():
            if value is not None and not table:
                raise DataError(
                    f"{name} is {value!r}, but {where} is not a table with columns: omit this "
                    "option"
                )
