"""The one ``Core`` of OpenVINO that a process has."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def openvino_core() -> Any:
    """Return OpenVINO's ``Core``, which lives as long as the process.

    OpenVINO's plugin for CPUs gives the thread that loads it a stack for signals
    (openvinotoolkit/openvino#11894) and frees it with the last core or model, while the thread
    may go on using it: a signal after that, such as the end of a child of torch's ``DataLoader``,
    ended the process (openvino 2026.4). The plugin is never unloaded while there is a core.
    """
    import openvino

    return openvino.Core()
