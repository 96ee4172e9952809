from typing import Any

import pytest
import torch
from timm.layers import CondConv2d

from headkit.export.graph.condconv import BatchedCondConv2d, replace_condconv
from tests.backbones import random_backbone


@pytest.mark.parametrize(
    ("options", "is_matmul"),
    [
        ({"kernel_size": 1}, True),
        ({"kernel_size": 1, "bias": True}, True),
        ({"kernel_size": 1, "stride": 2}, False),
        ({"kernel_size": 3, "groups": 8}, False),
        ({"kernel_size": 3, "groups": 2, "bias": True, "dilation": 2}, False),
        ({"kernel_size": 5, "groups": 8, "stride": 2, "padding": "same"}, False),
    ],
)
def test_batched_convolution_equals_timms(options: dict[str, Any], is_matmul: bool) -> None:
    torch.manual_seed(0)
    plain = CondConv2d(8, 16, num_experts=3, **options)
    batched = BatchedCondConv2d(plain)
    assert batched._is_matmul is is_matmul
    x, routing = torch.randn(5, 8, 11, 14), torch.rand(5, 3)
    with torch.no_grad():
        expected, found = plain(x, routing), batched(x, routing)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_network_with_batched_convolutions_has_the_same_logits() -> None:
    model = random_backbone("efficientnet_cc_b0_4e")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        assert any(
            isinstance(part, BatchedCondConv2d) for part in replace_condconv(model).modules()
        )
        found = model(x)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
