from typing import Any

import pytest
import torch

from headkit.adapters.fitting.linear.solve import solve


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinite_features_are_refused(bad: float) -> None:
    x = torch.ones(10, 3)
    x[7, 2] = bad
    with pytest.raises(ValueError, match="feature 2 has values that are NaN, infinite"):
        solve(x, torch.arange(10) % 2, 2, l2=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"l2": 0}, "l2 is 0, expected a positive number"),
        ({"l2": (1.0, float("nan"))}, "l2 is nan"),
        ({"l2": ()}, "l2 is empty"),
        ({"y": torch.tensor([0, 1, 2])}, "class indices 0 to 2, expected 0 to 1"),
        ({"y": torch.tensor([0, -1, 1])}, "class indices -1 to 1"),
        ({"y": torch.tensor([0, 1])}, r"y has shape \(2,\), expected \(3,\)"),
        ({"y": torch.ones(3)}, "float32, expected class indices"),
        ({"y": torch.full((3, 2), 0.5), "task": "multilabel"}, "values other than 0 and 1"),
        ({"y": torch.full((3, 2), torch.nan), "task": "regression"}, "NaN or infinite"),
        ({"x": torch.ones(0, 2), "y": torch.ones(0).long()}, r"x has shape \(0, 2\)"),
        ({"x_val": torch.ones(1, 2)}, "only one of x_val and y_val is given"),
        ({"x_val": torch.ones(1, 4), "y_val": torch.zeros(1).long()}, "x_val has 4 features"),
        ({"class_weights": torch.ones(3)}, "class_weights must be 2 positive numbers"),
        ({"class_weights": torch.tensor([1.0, 0.0])}, "class_weights must be 2 positive numbers"),
    ],
)
def test_invalid_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.ones(3, 2), "y": torch.tensor([0, 1, 0]), "num_outputs": 2}
    with pytest.raises(ValueError, match=message):
        solve(**{**arguments, **changes})
