from typing import Any

import pytest
import torch
from timm.layers import CondConv2d

from headkit.export.graph.condconv import Experts, replace_experts
from tests.backbones import random_backbone


@pytest.mark.parametrize(
    ("options", "product"),
    [
        ({"kernel_size": 1}, True),
        ({"kernel_size": 1, "bias": True}, True),
        ({"kernel_size": 1, "stride": 2}, False),
        ({"kernel_size": 3, "groups": 8}, False),
        ({"kernel_size": 3, "groups": 2, "bias": True, "dilation": 2}, False),
        ({"kernel_size": 5, "groups": 8, "stride": 2, "padding": "same"}, False),
    ],
)
def test_experts_give_what_timm_gives(options: dict[str, Any], product: bool) -> None:
    torch.manual_seed(0)
    plain = CondConv2d(8, 16, num_experts=3, **options)
    experts = Experts(plain)
    assert experts._is_product is product
    x, routing = torch.randn(5, 8, 11, 14), torch.rand(5, 3)
    with torch.no_grad():
        expected, found = plain(x, routing), experts(x, routing)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_network_with_experts_gives_the_same_logits() -> None:
    model = random_backbone("efficientnet_cc_b0_4e")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        assert any(isinstance(part, Experts) for part in replace_experts(model).modules())
        found = model(x)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
