import pytest
import timm

import headkit
from headkit.benchmarks.coverage import random_weights as lively


@pytest.mark.parametrize(("needed", "tries"), [(0.25, 1), (0.75, 3), (0.625, 7)])
def test_wake_tries_strengths_between_where_the_coarse_ones_fail(
    needed: float, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = [0.0]
    monkeypatch.setattr(lively, "calm", lambda _model, _x, strength: tried.append(strength))
    monkeypatch.setattr(lively, "_signal", lambda *_: (0.1, 0.0 if tried[-1] == needed else 1e-3))
    assert lively.wake(timm.create_model("test_resnet")) == (0.1, 0.0)
    assert len(tried) == 1 + tries


def test_wake_refuses_weights_under_which_rounding_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lively, "_signal", lambda *_: (0.1, 1e-4))
    with pytest.raises(headkit.ContractError, match="float32 be off by at most 5e-05; tried 0: "):
        lively.wake(timm.create_model("test_resnet"))


def test_wake_settles_for_the_calmest_weights_below_half_the_tolerance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = [0.0]
    monkeypatch.setattr(lively, "calm", lambda _model, _x, strength: tried.append(strength))
    signals = {0.375: (0.1, 4e-5)}
    monkeypatch.setattr(lively, "_signal", lambda *_: signals.get(tried[-1], (0.1, 1e-3)))
    assert lively.wake(timm.create_model("test_resnet")) == (0.1, 4e-5)
    assert tried[-1] == 0.375


def test_wake_asks_once_where_there_is_no_batchnorm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def signal(*_: object) -> tuple[float, float]:
        asked.append(1)
        return 0.1, 4e-5

    monkeypatch.setattr(lively, "_signal", signal)
    assert lively.wake(timm.create_model("test_vit")) == (0.1, 4e-5)
    assert len(asked) == 1
