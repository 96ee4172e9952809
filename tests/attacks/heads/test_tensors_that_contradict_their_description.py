"""Head files whose tensors are not those that their description promises.

At 64f666f, such a head was published without a word. Now a head compares its tensors with its
description, so that it cannot even be read.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headkit
from tests.attacks.hostile_files import write_head

WEIGHT, BIAS = np.ones((3, 5), np.float32), np.ones(3, np.float32)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "more classes than rows": ({"fc.weight": WEIGHT, "fc.bias": BIAS}, {"num_classes": 4}),
    "more rows than classes": ({"fc.weight": np.ones((9, 5), np.float32), "fc.bias": BIAS}, {}),
    "another width": ({"fc.weight": np.ones((3, 6), np.float32), "fc.bias": BIAS}, {}),
    "a longer bias": ({"fc.weight": WEIGHT, "fc.bias": np.ones(4, np.float32)}, {}),
    "no weight": ({"fc.bias": BIAS}, {}),
    "another kind": ({"fc.weight": WEIGHT, "fc.bias": BIAS}, {"kind": "mlp"}),
    "a kind that does not exist": ({"fc.weight": WEIGHT, "fc.bias": BIAS}, {"kind": "bert"}),
}


@pytest.mark.parametrize("case", CASES)
def test_contradiction_is_neither_read_nor_published(tmp_path: Path, case: str) -> None:
    tensors, changes = CASES[case]
    if changes.get("num_classes") == 4:
        changes = {**changes, "label_names": list("abcd")}
    path = write_head(tmp_path / "x.safetensors", tensors, **changes)
    store = headkit.HeadStore(tmp_path / "store")
    with pytest.raises(headkit.HeadkitError):
        store.publish(path, "x")
    assert not list(tmp_path.rglob("*.json"))
    with pytest.raises(headkit.HeadFormatError):
        headkit.Head.load(path)
