"""Tables of images: open one as training data. Its length decides which task it is for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from headkit.adapters.data.summary import describe_data

from ..mutations.images import draw_images
from ..mutations.tables import edit_table
from ..seeds import SeedFiles
from .door import Door

_TABLES = (
    "path,label\na.png,cat\nb.png,dog\nfolder/c.png,cat\nd.png,dog\n",
    "path,label\na.png,cat|dog\nb.png,dog\nfolder/c.png,\nd.png,cat\n",
    "path,label\na.png,1.5|2\nb.png,0|1\nfolder/c.png,-1|1e3\nd.png,0|0\n",
    "path,cat,dog\na.png,1,0\nb.png,0,1\nfolder/c.png,1,1\nd.png,0,1\n",
    "file,label,split\na.png,cat,train\nb.png,dog,train\nfolder/c.png,cat,val\nd.png,dog,test\n",
    "path,label,is_valid\na.png,cat,False\nb.png,dog,False\nfolder/c.png,cat,True\nd.png,dog,1\n",
)
_TASKS: tuple[Literal["multilabel", "regression"] | None, ...] = (None, "multilabel", "regression")


def open_door(_seeds: SeedFiles, folder: Path) -> Door:
    """See ``doors.open_door``."""
    path = folder / "data" / "table.csv"
    (path.parent / "folder").mkdir(parents=True)
    for name, content in zip(
        ("a.png", "b.png", "folder/c.png", "d.png"), draw_images(), strict=False
    ):
        (path.parent / name).write_bytes(content)
    os.mkfifo(path.parent / "pipe")

    def enter(content: bytes) -> None:
        path.write_bytes(content)
        str(describe_data(path, task=_TASKS[len(content) % len(_TASKS)]))

    return Door([table.encode() for table in _TABLES], edit_table, enter)
