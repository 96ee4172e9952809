"""Head files with tensors of each type that safetensors knows.

At 64f666f, a bfloat16 head was a TypeError for ``headkit info``, float8 was an AttributeError, and
integers, truth values and complex numbers were accepted. Now a head is read, or refused by the name
of the type, and bfloat16 goes the whole way.
"""

from pathlib import Path

import numpy as np
import pytest

import headkit
from tests.attacks.hostile_files import run_headkit, write_raw_head

SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "U64": 8,
    "I32": 4,
    "U32": 4,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "C64": 8,
}
FLOATS = ("F64", "F32", "F16", "BF16")
ONE = {
    "F64": np.float64(1).tobytes(),
    "F32": np.float32(1).tobytes(),
    "F16": np.float16(1).tobytes(),
    "BF16": np.float32(1).tobytes()[2:],
    "C64": np.complex64(1 + 1j).tobytes(),
}


@pytest.mark.parametrize("dtype", SIZES)
def test_every_type_is_read_or_refused_by_name(tmp_path: Path, dtype: str) -> None:
    size = SIZES[dtype]
    one = ONE.get(dtype, b"\1" + bytes(size - 1))
    header = {"fc.weight": {"dtype": dtype, "shape": [3, 5], "data_offsets": [0, 15 * size]}}
    path = write_raw_head(tmp_path / "x.safetensors", header, one * 15)
    store = headkit.HeadStore(tmp_path / "store")
    if dtype in FLOATS:
        done = run_headkit("info", path)  # in a process that knows no type of other libraries
        assert done.returncode == 0, done.stderr
        assert np.all(np.asarray(headkit.Head.load(path).tensors["fc.weight"], np.float32) == 1)
        assert store.load(store.publish(path, "x")).num_classes == 3
        return
    for function in (headkit.Head.load, headkit.info, lambda file: store.publish(file, "x")):
        with pytest.raises(headkit.HeadkitError, match=dtype):
            function(path)
