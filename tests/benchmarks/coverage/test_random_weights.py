import pytest
import timm

import headkit
from headkit.benchmarks.coverage import random_weights


@pytest.mark.parametrize(("needed", "tries"), [(0.25, 1), (0.75, 3), (0.625, 7)])
def test_finer_strengths_are_tried_if_the_coarse_ones_fail(
    needed: float, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = [0.0]
    monkeypatch.setattr(
        random_weights,
        "scale_batchnorm_inputs",
        lambda _model, _x, strength: tried.append(strength),
    )
    monkeypatch.setattr(
        random_weights,
        "_measure_sensitivity",
        lambda *_: (0.1, 0.0 if tried[-1] == needed else 1e-3),
    )
    assert random_weights.randomize_weights(timm.create_model("test_resnet")) == (0.1, 0.0)
    assert len(tried) == 1 + tries


def test_weights_with_which_rounding_decides_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_weights, "_measure_sensitivity", lambda *_: (0.1, 1e-4))
    with pytest.raises(
        headkit.ContractError, match="a float32 error of at most 5e-05: scale 0 gives"
    ):
        random_weights.randomize_weights(timm.create_model("test_resnet"))


def test_least_chaotic_weights_are_taken_below_half_the_tolerance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = [0.0]
    monkeypatch.setattr(
        random_weights,
        "scale_batchnorm_inputs",
        lambda _model, _x, strength: tried.append(strength),
    )
    signals = {0.375: (0.1, 4e-5)}
    monkeypatch.setattr(
        random_weights, "_measure_sensitivity", lambda *_: signals.get(tried[-1], (0.1, 1e-3))
    )
    assert random_weights.randomize_weights(timm.create_model("test_resnet")) == (0.1, 4e-5)
    assert tried[-1] == 0.375


def test_a_model_without_batchnorm_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def signal(*_: object) -> tuple[float, float]:
        calls.append(1)
        return 0.1, 4e-5

    monkeypatch.setattr(random_weights, "_measure_sensitivity", signal)
    assert random_weights.randomize_weights(timm.create_model("test_vit")) == (0.1, 4e-5)
    assert len(calls) == 1
