"""Heads over levels in exported models: every form computes the logits that torch computes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

import headkit
from headkit.adapters.errors import BackboneMismatch, ContractError, ExportError
from headkit.export.graph.heads_in_graph import remove_heads
from headkit.export.graph.metadata import ModelInfo
from headkit.export.graph.onnx_file import open_model
from tests.backbones import active_backbone
from tests.heads import head_for
from tests.images import X
from tests.level_heads import logits_of, over_levels, plain_levels
from tests.logits import assert_close, session, torch_logits

LEVELS = ["layer2", "layer3"]


@pytest.fixture(scope="module")
def model() -> Any:
    return active_backbone()


@pytest.fixture(scope="module")
def heads(model: nn.Module) -> dict[str, headkit.Head]:
    return {
        "some": over_levels(model, ["last", *LEVELS], 5, label_names=tuple("abcde")),
        "one": over_levels(model, ["layer2"], 4, seed=1, temperature=2.0),
        "plain": head_for(model, 3, temperature=0.5),
        "curved": head_for(model, 3, kind="mlp"),
    }


@pytest.fixture(scope="module")
def swappable(
    model: nn.Module, heads: dict[str, headkit.Head], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("swappable") / "model.onnx"
    headkit.export(heads["some"], path, "swappable", backbone=model, probabilities=True)
    return path


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "model.onnx"
    # The tests attach heads to the other model in inference mode, and torch cannot export those.
    headkit.export(active_backbone(), path, "backbone", levels="all")
    return path


def test_backbone_outputs_the_features_and_all_levels(model: nn.Module, backbone: Path) -> None:
    opened = session(backbone)
    names = [output.name for output in opened.get_outputs()]
    assert names == ["features", *(f"level_{n}" for n in plain_levels(model, X) if n != "last")]
    outputs = dict(zip(names, opened.run(None, {"pixel_values": X.numpy()}), strict=True))
    for name, expected in plain_levels(model, X).items():
        output = outputs["features" if name == "last" else f"level_{name}"]
        assert_close(output.reshape(len(X), -1), expected.numpy())


def test_merged_model_computes_only_the_levels_of_its_head(
    model: nn.Module, heads: dict[str, headkit.Head], tmp_path: Path
) -> None:
    done = headkit.export(heads["one"], tmp_path / "one.onnx", backbone=model, probabilities=True)
    assert [level.name for level in done.info.levels] == ["layer2"]
    assert max(done.difference.values()) < 1e-5
    logits, probabilities = session(done.path).run(None, {"pixel_values": X.numpy()})
    expected = logits_of(model, heads["one"], X)
    assert_close(logits, expected)
    assert_close(probabilities, torch.tensor(expected / 2).softmax(1).numpy())
    assert_close(headkit.Predictor(done.path).logits(X.numpy()), expected)


def test_swappable_model_takes_heads_that_read_less(
    model: nn.Module, heads: dict[str, headkit.Head], swappable: Path, tmp_path: Path
) -> None:
    shapes = {v.name: v.shape for v in session(swappable).get_overridable_initializers()}
    width = sum(level.width for level in heads["some"].levels)
    assert shapes == {
        "level_head.weight": ["num_classes", width],
        "level_head.bias": ["num_classes"],
        "temperature": [1],
    }
    given: dict[str, Any] = {name: heads[name] for name in ("one", "plain")}
    for name in ("one", "plain"):
        given[f"file-{name}"] = tmp_path / f"{name}.onnx_adapter"
        headkit.graft(swappable, heads[name], given[f"file-{name}"])
    predictor = headkit.Predictor(swappable, given)
    assert_close(predictor.logits(X.numpy()), logits_of(model, heads["some"], X))
    for name in ("one", "file-one"):
        assert_close(predictor.logits(X.numpy(), name), logits_of(model, heads["one"], X))
    for name in ("plain", "file-plain"):
        assert_close(predictor.logits(X.numpy(), name), torch_logits(model, heads["plain"], X))
    with pytest.raises(ExportError, match="takes linear heads, but this head has the kind 'mlp'"):
        headkit.Predictor(swappable, {"curved": heads["curved"]})


def test_adapter_of_a_model_with_other_levels_of_the_same_width_is_refused(
    model: nn.Module, swappable: Path, tmp_path: Path
) -> None:
    levels = {level.name: level.width for level in headkit.levels(model)}
    assert levels["act1"] == levels["layer1"]
    adapter = tmp_path / "head.onnx_adapter"
    first = over_levels(model, ["last", "act1"], 3)
    second = over_levels(model, ["last", "layer1"], 3)
    headkit.export(first, tmp_path / "first.onnx", "swappable", backbone=model)
    headkit.export(second, tmp_path / "second.onnx", "swappable", backbone=model)
    headkit.graft(tmp_path / "first.onnx", first, adapter)
    with pytest.raises(BackboneMismatch, match="another backbone or other levels"):
        headkit.Predictor(tmp_path / "second.onnx", {"first": adapter})
    assert headkit.Predictor(tmp_path / "first.onnx", {"first": adapter}).heads == ["", "first"]


def test_multi_model_has_one_product_for_all_heads_over_levels(
    model: nn.Module, heads: dict[str, headkit.Head], tmp_path: Path
) -> None:
    done = headkit.export(
        heads, tmp_path / "multi.onnx", "multi", backbone=model, probabilities=True
    )
    assert [level.name for level in done.info.levels] == LEVELS
    nodes = [node for node in onnx.load(done.path).graph.node if node.name.startswith("head/level")]
    assert [node.op_type for node in nodes].count("Gemm") == 1
    predictor = headkit.Predictor(done.path)
    for name in ("some", "one"):
        assert_close(predictor.logits(X.numpy(), name), logits_of(model, heads[name], X))
    for name in ("plain", "curved"):
        assert_close(predictor.logits(X.numpy(), name), torch_logits(model, heads[name], X))


@pytest.mark.parametrize("form", ["merged", "swappable", "multi"])
def test_heads_come_out_of_a_graph_bit_for_bit(
    form: str, model: nn.Module, heads: dict[str, headkit.Head], tmp_path: Path
) -> None:
    given = heads if form == "multi" else {"": heads["some"]}
    path = tmp_path / "model.onnx"
    headkit.export(
        given if form == "multi" else heads["some"], path, form, backbone=model, levels="all"
    )
    if form != "multi":
        for number, name in enumerate(("one", "plain", "some", "plain")):
            before, path = path, tmp_path / f"{number}.onnx"
            headkit.graft(before, heads[name], path)
            with open_model(path) as opened:
                (found,) = remove_heads(opened.model, opened.info).values()
            assert found.digest == heads[name].digest == opened.info.heads[0].head_id
        assert_close(
            headkit.Predictor(path).logits(X.numpy()), torch_logits(model, heads["plain"], X)
        )
    with open_model(path) as opened:
        removed = remove_heads(opened.model, opened.info)
        left = [tensor.name for tensor in opened.model.graph.initializer]
    expected = given if form == "multi" else {"": heads["plain"]}
    assert {name: head.digest for name, head in removed.items()} == {
        name: head.digest for name, head in expected.items()
    }
    assert not [name for name in left if name.startswith(("head/", "level_head", "fc"))]


def test_head_is_grafted_onto_a_backbone_with_levels(
    model: nn.Module, heads: dict[str, headkit.Head], backbone: Path, tmp_path: Path
) -> None:
    headkit.graft(backbone, heads["some"], tmp_path / "some.onnx")
    predictor = headkit.Predictor(tmp_path / "some.onnx")
    assert_close(predictor.logits(X.numpy()), logits_of(model, heads["some"], X))
    headkit.graft(tmp_path / "some.onnx", heads["curved"], tmp_path / "curved.onnx")
    predictor = headkit.Predictor(tmp_path / "curved.onnx")
    assert_close(predictor.logits(X.numpy()), torch_logits(model, heads["curved"], X))


def test_model_without_the_levels_refuses_the_head_and_says_how_to_export_it(
    model: nn.Module, heads: dict[str, headkit.Head], tmp_path: Path
) -> None:
    plain = tmp_path / "plain.onnx"
    headkit.export(heads["plain"], plain, "swappable", backbone=model)
    advice = (
        r"reads the levels layer2, layer3, but the model computes the last features alone: export "
        r"it again with levels='all' \(--levels all\)"
    )
    with pytest.raises(BackboneMismatch, match=advice):
        headkit.graft(plain, heads["some"], tmp_path / "out.onnx", force=True)
    with pytest.raises(BackboneMismatch, match=advice):
        headkit.Predictor(plain, {"some": heads["some"]})
    headkit.export(heads["one"], tmp_path / "one.onnx", backbone=model)
    with pytest.raises(BackboneMismatch, match="levels layer3, but the model computes only layer2"):
        headkit.graft(tmp_path / "one.onnx", heads["some"], tmp_path / "out.onnx")
    with pytest.raises(ContractError, match="has no level 'layer9', expected some of last, act1"):
        headkit.export(heads["plain"], tmp_path / "x.onnx", backbone=model, levels=["layer9"])


def test_predictor_returns_the_levels_of_images(
    model: nn.Module, swappable: Path, heads: dict[str, headkit.Head]
) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    predictor = headkit.Predictor(swappable)
    pixels = torch.from_numpy(predictor.preprocess(photo))[None]
    expected = plain_levels(model, pixels)
    found = predictor.features([photo], levels="all")
    assert list(found) == ["last", *LEVELS]
    for name, vector in found.items():
        assert_close(vector, expected[name].numpy())
    assert list(predictor.features([photo], levels="layer3")) == ["last", "layer3"]
    assert_close(np.asarray(predictor.features([photo])), expected["last"].numpy())
    with pytest.raises(ExportError, match="does not compute the level 'layer1'; it computes last"):
        predictor.features([photo], levels=["layer1"])


def test_model_with_levels_requires_a_reader_that_knows_them(swappable: Path) -> None:
    props = {one.key: one.value for one in onnx.load(swappable).metadata_props}
    assert props["version"] == "2"
    assert json.loads(props["requires"]) == ["levels"]
    assert [level["name"] for level in json.loads(props["levels"])] == LEVELS
    info = ModelInfo.from_props(props, "model")
    assert info.to_props() == props
    for damage, reason in (
        ({"requires": "[]"}, "its entry 'requires' lacks 'levels'"),
        ({"levels": '[{"name":"layer2","width":-1,"layout":"NCHW"}]'}, "width"),
        ({"levels": props["levels"].replace("layer2", "layer1")}, "not among the levels"),
    ):
        with pytest.raises(ExportError, match=reason):
            ModelInfo.from_props(props | damage, "model")


def test_model_with_a_head_over_levels_is_exported(
    model: nn.Module, heads: dict[str, headkit.Head], tmp_path: Path
) -> None:
    attached = headkit.attach(active_backbone(), heads["some"])
    done = headkit.export(attached, tmp_path / "model.onnx", preprocess=True)
    assert [level.name for level in done.info.levels] == LEVELS
    with torch.no_grad():
        assert_close(attached(X).numpy(), logits_of(model, heads["some"], X))
    done = headkit.export(attached, tmp_path / "backbone.onnx", "backbone")
    assert list(done.info.values) == ["features", "level_layer2", "level_layer3"]
