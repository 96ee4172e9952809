"""What works with a timm that no longer has a class that our code names."""

import ast
import json
import subprocess
import sys
from typing import Any

import onnx.defs
import pytest
import timm
import torch

from headkit.adapters.backbone import encoders, timm_exceptions
from headkit.adapters.backbone.classifier import find_classifier
from headkit.adapters.backbone.forward import features
from headkit.adapters.backbone.levels import examine_levels
from headkit.adapters.backbone.timm_exceptions import DROPPED_RELU, ENCODERS
from headkit.adapters.errors import ContractError
from headkit.benchmarks.coverage.contract import structure
from headkit.benchmarks.coverage.record import load, smallest_of_each_family
from headkit.benchmarks.studies.catalogue import RECORD
from tests.shipped import shipped_modules

OF_CLASS = {
    "AttentionPool2d": "resnet50_clip resnet50x4_clip resnet50x16_clip resnet50x64_clip "
    "resnet101_clip",
    "CondConv2d": "efficientnet_cc_b0_4e efficientnet_cc_b0_8e efficientnet_cc_b1_8e "
    "tf_efficientnet_cc_b0_4e tf_efficientnet_cc_b0_8e tf_efficientnet_cc_b1_8e",
    "DeepseekVitEncoder": "deepseek_vit_412m deepseek_vit_412m_align deepseek_vit_412m_enc",
    "EfficientViM": "efficientvim_m1 efficientvim_m2 efficientvim_m3 efficientvim_m4",
    "EfficientViMDistilled": "efficientvim_m1_dist efficientvim_m2_dist efficientvim_m3_dist "
    "efficientvim_m4_dist",
    "Gemma4VitEncoder": "gemma4_vit_167m gemma4_vit_167m_enc gemma4_vit_570m gemma4_vit_570m_enc",
    "IFormer": "iformer_t iformer_s iformer_m iformer_m_distilled iformer_l iformer_l_distilled "
    "iformer_l2 iformer_l2_distilled iformer_h",
    "MobileNetV5Encoder": "mobilenetv5_300m_enc",
    "Qwen3VitEncoder": "qwen3_vit_88m qwen3_vit_88m_enc qwen3_vit_88m_merge qwen3_vit_306m "
    "qwen3_vit_306m_enc qwen3_vit_306m_merge qwen3_vit_416m qwen3_vit_416m_enc "
    "qwen3_vit_416m_merge",
    "RepVit": "repvit_m0_9 repvit_m1 repvit_m1_0 repvit_m1_1 repvit_m1_5 repvit_m2 repvit_m2_3 "
    "repvit_m3",
    "VOLO": "volo_d1_224 volo_d1_384 volo_d2_224 volo_d2_384 volo_d3_224 volo_d3_448 volo_d4_224 "
    "volo_d4_448 volo_d5_224 volo_d5_448 volo_d5_512",
}
"""Classes of timm that our code names -> the architectures that have a module of the class."""

OF_LEVELS = {
    "Xception": "legacy_xception",
    "NASNetALarge": "nasnetalarge",
    "PNASNet5Large": "pnasnet5large",
    "CrossVit": "crossvit_9_240",
}
"""Classes that our code names for their levels alone -> an architecture of the class."""

NEIGHBOURS = ("test_resnet", "test_vit", "test_efficientnet", "test_byobnet", "mobilenetv5_base")
"""Small architectures without these classes, some from a family that has one."""


def check_without(classes: str, architectures: list[str]) -> dict[str, list[str] | None]:
    """Return the outcome of the structural check in a process whose timm lacks the classes."""
    command = [sys.executable, "-m", "tests.timm_without", classes, ",".join(architectures)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def expect(outcome: dict[str, list[str] | None], broken: dict[str, str]) -> None:
    for architecture, error in outcome.items():
        if architecture not in broken:
            assert error is None, architecture
        else:
            assert error is not None, architecture
            assert error[0] == ContractError.__name__
            assert f"{broken[architecture]!r}" in error[1]


def test_without_all_these_classes_only_their_architectures_fail() -> None:
    broken = {names.split()[0]: name for name, names in OF_CLASS.items()}
    outcome = check_without(",".join(OF_CLASS), [*NEIGHBOURS, *broken])
    assert outcome.keys() == {*NEIGHBOURS, *broken}
    expect(outcome, broken)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_CLASS)
def test_without_a_class_only_its_architectures_fail(name: str) -> None:
    broken = dict.fromkeys(OF_CLASS[name].split(), name)
    smallest = smallest_of_each_family(load(RECORD))
    assert len(smallest) == 98
    expect(check_without(name, sorted({*smallest, *broken})), broken)


def test_each_module_class_of_timm_that_the_code_names_is_deleted() -> None:
    torch_or_onnx = {*vars(torch.nn), *(schema.name for schema in onnx.defs.get_all_schemas())}
    classes = {
        name
        for key, module in list(sys.modules.items())
        if key.partition(".")[0] == "timm"
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, torch.nn.Module)
        and value.__module__.startswith("timm.")
    }
    ours: set[str] = set()
    names: set[str] = set()
    for tree in shipped_modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                ours.add(node.name)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.alias):
                names.add(node.name)
    assert names & classes - torch_or_onnx - ours == {*OF_CLASS, *OF_LEVELS}


@pytest.mark.parametrize("name", sorted(DROPPED_RELU))
def test_class_whose_relu_is_not_in_the_table_has_no_levels(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = timm.create_model(OF_LEVELS[name], device="meta")
    monkeypatch.setattr("headkit.adapters.backbone.levels.find.DROPPED_RELU", frozenset())
    found = examine_levels(model)
    assert found.levels == ()
    assert "no module returns what forward_intermediates returns" in found.reason


def test_grid_of_images_that_the_model_scales_needs_its_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(OF_LEVELS["CrossVit"]).eval()
    x = torch.randn(1, 3, 120, 240)
    with torch.no_grad():
        expected = features(model, x, levels="blocks.0:0")["blocks.0:0"]
        monkeypatch.setattr("headkit.adapters.backbone.levels.layout.SCALED_SIZE", {})
        found = features(model, x, levels="blocks.0:0")["blocks.0:0"]
    assert not torch.allclose(found, expected, atol=1e-2)


@pytest.mark.slow
def test_no_other_architecture_has_a_module_of_these_classes() -> None:
    found: dict[str, set[str]] = {name: set() for name in OF_CLASS}
    for architecture in timm.list_models():
        model = timm.create_model(architecture, device="meta")
        for name in {type(module).__name__ for module in model.modules()} & OF_CLASS.keys():
            found[name].add(architecture)
    assert found == {name: set(names.split()) for name, names in OF_CLASS.items()}


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_encoder_without_a_row_is_a_contract_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = next(one for one in OF_CLASS[name].split() if one.endswith("_enc"))
    monkeypatch.delitem(ENCODERS, name)
    with pytest.raises(ContractError, match=name):
        structure(architecture)


@pytest.mark.parametrize(
    ("table", "name", "architecture"),
    [
        ("RESET_ARGUMENTS", "RepVit", "repvit_m0_9"),
        ("RESET_ARGUMENTS", "IFormer", "iformer_m_distilled"),
        ("COMBINE_LOGITS", "VOLO", "volo_d1_224"),
        ("COMBINE_LOGITS", "EfficientViM", "efficientvim_m1"),
        ("COMBINE_LOGITS", "EfficientViMDistilled", "efficientvim_m1_dist"),
        ("POOLED_PART", "AttentionPool2d", "resnet50_clip"),
    ],
)
def test_class_whose_row_is_missing_is_a_contract_error(
    table: str, name: str, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a release of timm that renames the class."""
    full = getattr(timm_exceptions, table)
    rows = {key: value for key, value in full.items() if key != name}
    find_row = timm_exceptions.find_row

    def find_in_shortened(searched: Any, module: Any) -> Any:
        return find_row(rows if searched is full else searched, module)

    for module in ("classifier", "forward", "forward_record"):
        monkeypatch.setattr(f"headkit.adapters.backbone.{module}.find_row", find_in_shortened)
    if table == "RESET_ARGUMENTS":
        with pytest.raises(ContractError, match=rf"\({name}\): the classifier moves"):
            structure(architecture)
        return
    torch.manual_seed(0)
    model = timm.create_model(architecture).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.startswith("weights"):
                parameter.normal_()  # with equal weights the row equals the default
        size = timm.models.get_model_input_config(model)["input_size"]
        with pytest.raises(ContractError, match=type(model).__name__):
            features(model, torch.randn(1, *size))


def test_subclass_of_an_encoder_is_created_once() -> None:
    one, other = (timm.create_model("qwen3_vit_88m_enc", device="meta") for _ in range(2))
    plain = type(one)
    assert find_classifier(one).num_classes == find_classifier(other).num_classes == 0
    assert type(one) is type(other) is encoders._SUBCLASSES[plain]
    assert type(one).__name__ == "ClassifyingQwen3VitEncoder"
    assert isinstance(one, plain)
