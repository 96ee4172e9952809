"""The contract on each row of the tables of exceptions, and on each kind of head."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import headkit
from headkit.adapters.backbone import timm_exceptions
from headkit.adapters.backbone.classifier import (
    classifier_tensors,
    find_classifier,
    replace_classifier,
)
from headkit.adapters.heads.kinds import KINDS, detect_kind
from headkit.benchmarks.coverage import contract

ROWS = {
    "VOLO": "volo_d1_224",
    "EfficientViM": "efficientvim_m1",
    "EfficientViMDistilled": "efficientvim_m1_dist",
    "AttentionPool2d": "resnet50_clip",
    "RepVit": "repvit_m0_9",
    "IFormer": "iformer_t",
}


def _model(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return headkit.load_backbone(name, pretrained=False, **kwargs)


def _x(model: Any, batch: int = 2) -> torch.Tensor:
    size = timm.models.get_model_input_config(model)["input_size"]
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(1))


def test_head_of_volo_carries_the_aux_head() -> None:
    model = headkit.adapt(_model("volo_d1_224"), 4)
    assert set(headkit.head_of(model).tensors) == {
        "head.weight", "head.bias", "aux_head.weight", "aux_head.bias",
    }  # fmt: skip
    x = _x(model, 1)
    with torch.no_grad():
        tokens_and_class = headkit.features(model, x)
        torch.testing.assert_close(headkit.classify(model, tokens_and_class), model(x))


def test_head_of_levit_carries_its_batch_norm_buffers() -> None:
    head = headkit.head_of(headkit.adapt(_model("levit_128s"), 4))
    assert "head.bn.running_mean" in head.tensors
    assert "head_dist.linear.weight" in head.tensors


def test_crossvit_has_one_feature_tensor_per_branch() -> None:
    model = headkit.adapt(_model("crossvit_9_240"), 4)
    with torch.no_grad():
        entered = headkit.features(model, _x(model))
    assert [tuple(tensor.shape) for tensor in entered] == [(2, 128), (2, 256)]


def test_repvit_keeps_its_distillation_classifier() -> None:
    """timm's own reset_classifier(7) drops it; create_model(num_classes=7) keeps it."""
    expected = {
        n for n in timm.create_model("repvit_m0_9", num_classes=7).state_dict() if "head" in n
    }
    assert set(headkit.head_of(headkit.adapt(_model("repvit_m0_9"), 7)).tensors) == expected
    plain = timm.create_model("repvit_m0_9")
    plain.reset_classifier(7)
    assert {n for n in plain.state_dict() if "head" in n} != expected


def test_default_kind_is_linear_if_timms_classifier_has_hidden_layers() -> None:
    model = headkit.adapt(_model("caformer_s18"), 4)
    head = headkit.head_of(model)
    assert head.kind == "linear"
    assert {name: t.shape for name, t in head.tensors.items()} == {
        "head.fc.weight": (4, 512), "head.fc.bias": (4,),
    }  # fmt: skip
    own = headkit.head_of(headkit.adapt(_model("caformer_s18"), 4, kind="own"))
    assert own.num_bytes > 100 * head.num_bytes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "architecture", ["test_resnet", "dla46x_c", "deit_tiny_distilled_patch16_224"]
)
def test_each_kind_saves_loads_and_trains(kind: Any, architecture: str, tmp_path: Path) -> None:
    model = headkit.adapt(_model(architecture), 3, kind=kind)
    same_as_own = kind == "linear" and architecture != "dla46x_c"
    assert detect_kind(model) == ("own" if same_as_own else kind)
    before = headkit.head_of(model)
    x = _x(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    torch.autograd.backward(torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 1])))
    optimizer.step()
    head = headkit.save_head(model, tmp_path / "head.safetensors")
    assert head.backbone == before.backbone
    assert all((head.tensors[n] != before.tensors[n]).any() for n in head.tensors)
    fresh = headkit.attach(_model(architecture), tmp_path / "head.safetensors")
    with torch.no_grad():
        assert torch.equal(fresh(x), model.eval()(x))


@pytest.mark.parametrize("kind", ["mlp", "cosine"])
def test_each_kind_exports(kind: Any, tmp_path: Path) -> None:
    model = headkit.adapt(_model("test_resnet"), 3, kind=kind)
    done = headkit.export(model, tmp_path / "model.onnx")
    assert max(done.difference.values()) < 1e-4
    assert headkit.info(tmp_path / "model.onnx")["kind"] == kind


def test_cosine_head_is_the_scaled_cosine() -> None:
    model = headkit.adapt(_model("test_resnet"), 3, kind="cosine")
    features = torch.randn(2, 96)
    weight = torch.from_numpy(headkit.head_of(model).tensors["fc.weight"])
    expected = 10 * torch.nn.functional.cosine_similarity(features[:, None], weight[None], dim=-1)
    with torch.no_grad():
        torch.testing.assert_close(headkit.classify(model, features), expected)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(headkit.ContractError, match="kind is 'round', expected one of own, linear"):
        headkit.adapt(_model("test_resnet"), 3, kind="round")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "row",
    sorted(
        {
            *timm_exceptions.COMBINE_LOGITS,
            *timm_exceptions.POOLED_PART,
            *timm_exceptions.RESET_ARGUMENTS,
        }
    ),
)
def test_architecture_of_each_row_keeps_the_contract(row: str) -> None:
    assert contract.numeric(ROWS[row])["difference"] <= 1e-5


@pytest.mark.parametrize(
    ("architecture", "kwargs", "size", "width"),
    [
        ("gemma4_vit_167m_enc", {"depth": 1}, 96, 768),
        ("gemma4_vit_570m_enc", {"depth": 1}, 96, 1152),
        ("qwen3_vit_88m_enc", {"depth": 1}, 64, 1024),
        ("qwen3_vit_306m_enc", {"depth": 1}, 64, None),
        ("qwen3_vit_416m_enc", {"depth": 1}, 64, None),
        ("deepseek_vit_412m_enc", {"depth": 1}, 84, 5120),
        ("mobilenetv5_300m_enc", {}, 256, 2048),
    ],
)
def test_encoders_without_a_classifier_get_one(
    architecture: str, kwargs: dict[str, Any], size: int, width: int | None
) -> None:
    plain = timm.create_model(architecture, **kwargs)
    names = set(plain.state_dict())
    model = headkit.adapt(plain, 5)
    assert set(model.state_dict()) == names | {"head.weight", "head.bias"}
    assert width in (None, headkit.head_of(model).num_features)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        entered = headkit.features(model, x)
        assert isinstance(entered, torch.Tensor)
        assert entered.shape == (2, headkit.head_of(model).num_features)
        assert torch.equal(headkit.classify(model, entered), model(x))
        if kwargs:  # the encoder whose depth cannot be reduced is large
            for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
                assert torch.equal(duplicate(x), model(x))


def test_gemma_encoder_pools_valid_tokens_only() -> None:
    """The mean over an image equals the mean over the same patches with padding behind them."""
    torch.manual_seed(0)
    model = headkit.adapt(timm.create_model("gemma4_vit_167m_enc", depth=1), 3).eval()
    patches, side = 36, 6
    values = torch.rand(1, patches, 768)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    coord = torch.stack([y.flatten(), x.flatten()], -1)[None]
    padding = 18
    full = {"patches": values, "patch_coord": coord, "patch_valid": torch.ones(1, patches).bool()}
    padded = {
        "patches": torch.cat([values, torch.zeros(1, padding, 768)], 1),
        "patch_coord": torch.cat([coord, torch.full((1, padding, 2), -1)], 1),
        "patch_valid": torch.arange(patches + padding)[None] < patches,
    }
    with torch.no_grad():
        expected, features = headkit.features(model, full), headkit.features(model, padded)
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-3 * float(expected.std()))


@pytest.mark.parametrize(
    ("architecture", "kwargs"),
    [
        ("test_resnet", {"global_pool": "max"}),
        ("test_resnet", {"global_pool": "catavgmax"}),
        ("test_resnet", {"in_chans": 1}),
        ("test_vit", {"global_pool": "map"}),
        ("test_vit", {"img_size": 96}),
        ("test_vit", {"num_classes": 0}),
        ("dla46x_c", {"num_classes": 0}),
        ("deit_tiny_distilled_patch16_224", {"num_classes": 0}),
        ("crossvit_9_240", {"num_classes": 0}),
        ("efficientvit_m0", {"num_classes": 0}),
        ("volo_d1_224", {"num_classes": 0}),
    ],
)
def test_options_of_timm_keep_the_contract(
    architecture: str, kwargs: dict[str, Any], tmp_path: Path
) -> None:
    model = _model(architecture, **kwargs)
    x = _x(model)
    with torch.no_grad():
        before = headkit.features(model, x)
        headkit.adapt(model, 3)
        after = headkit.features(model, x)
        for one, other in zip(_tuple(before), _tuple(after), strict=True):
            assert torch.equal(one, other)
        torch.testing.assert_close(headkit.classify(model, after), model(x))
        headkit.save_head(model, tmp_path / "head.safetensors")
        fresh = headkit.attach(_model(architecture, **kwargs), tmp_path / "head.safetensors")
        assert torch.equal(fresh(x), model(x))


def _tuple(entered: Any) -> tuple[torch.Tensor, ...]:
    return entered if isinstance(entered, tuple) else (entered,)


def test_features_that_are_not_pooled_are_an_error() -> None:
    model = headkit.adapt(_model("test_resnet", num_classes=0, global_pool=""), 3)
    with pytest.raises(headkit.ContractError, match="not pooled"):
        headkit.features(model, _x(model))


def test_drop_rate_acts_on_the_features_in_train_mode_only() -> None:
    model = headkit.adapt(_model("test_resnet", drop_rate=0.5), 3)
    x = _x(model)
    with torch.no_grad():
        quiet = model(x)
        assert torch.equal(model(x), quiet)
        model.train()
        assert not torch.equal(model(x), model(x))
        assert torch.equal(model.eval()(x), quiet)
    headkit.adapt(model, 3)
    hooks = [
        h
        for path in find_classifier(model).paths
        for h in model.get_submodule(path)._forward_pre_hooks
    ]
    assert len(hooks) == 1


def test_replacing_in_any_order_has_the_same_result() -> None:
    for name in ("efficientvit_m0", "shvit_s1", "test_resnet", "samvit_base_patch16"):
        model = timm.create_model(name, device="meta")
        for num_classes in (0, 4, 0, 0, 6, 4):
            replace_classifier(model, num_classes)
        shapes = {n: t.shape for n, t in classifier_tensors(model).items()}
        plain = timm.create_model(name, device="meta", num_classes=4)
        assert shapes == {n: t.shape for n, t in classifier_tensors(plain).items()}
