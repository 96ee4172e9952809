from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

import headkit
from headkit.adapters.tensor_bytes import to_safetensors
from tests.backbones import random_backbone

NUMBERS = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "array",
    [
        NUMBERS.T,
        NUMBERS[:, ::-1],
        np.broadcast_to(NUMBERS[:1], NUMBERS.shape),
        NUMBERS.astype(">f4"),
        NUMBERS.astype(">f4").T,
        np.asfortranarray(NUMBERS),
        np.float32(3),
        NUMBERS.astype(ml_dtypes.bfloat16).T,
        np.zeros((0, 3), np.float32),
    ],
)
def test_numbers_are_read_as_they_were_written(array: Any) -> None:
    found = safetensors.torch.load(to_safetensors({"a": array}))["a"].double().numpy()
    assert found.shape == array.shape
    assert np.array_equal(found, np.asarray(array).astype(np.float64))


def test_head_with_transposed_weights_is_attached_and_saved_as_it_is(tmp_path: Path) -> None:
    model = random_backbone()
    torch.manual_seed(0)
    head = headkit.head_of(headkit.adapt(model, 3))
    turned = {
        name: np.asfortranarray(tensor).astype(tensor.dtype.newbyteorder(">"))
        for name, tensor in head.tensors.items()
    }
    other = head.with_changes(tensors=turned)
    path = other.save(tmp_path / "head.safetensors")
    x = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        expected = model(x)
        for one in (other, path):
            found = headkit.attach(random_backbone(), one)
            assert torch.equal(found(x), expected)
