import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

import headkit
from headkit.adapters.backbone import fingerprint as fingerprint_module
from headkit.export.exporter import Exported
from tests.backbones import SHORT, active_backbone
from tests.heads import head_for
from tests.images import X
from tests.logits import assert_close, session, torch_logits


@pytest.fixture(scope="module")
def model() -> Any:
    return active_backbone()


@pytest.fixture(scope="module")
def heads(model: nn.Module) -> dict[str, headkit.Head]:
    return {
        "pets": head_for(model, 5, label_names="abcde"),
        "birds": head_for(model, 3, temperature=2.0),
        "curved": head_for(model, 4, kind="mlp"),
        "angles": head_for(model, 6, kind="cosine"),
        "tags": head_for(model, 3, task="multilabel", temperature=0.5),
    }


@pytest.fixture(scope="module")
def exported(
    model: nn.Module, heads: dict[str, headkit.Head], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exported]:
    """Models that several tests read: the form and what its export returned."""
    folder = tmp_path_factory.mktemp("forms")
    pets = heads["pets"]
    return {
        "merged": headkit.export(pets, folder / "merged.onnx", backbone=model),
        "swappable": headkit.export(
            pets, folder / "swappable.onnx", "swappable", backbone=model, probabilities=True
        ),
        "multi": headkit.export(
            heads, folder / "multi.onnx", "multi", backbone=model, probabilities=True
        ),
    }


def test_swappable_session_takes_heads_of_other_class_counts(
    model: nn.Module, heads: dict[str, headkit.Head], exported: dict[str, Exported], tmp_path: Path
) -> None:
    path = exported["swappable"].path
    assert exported["swappable"].info.form == "swappable"
    graph = onnx.load(path).graph
    assert {value.name for value in graph.input} == {
        "pixel_values", "fc.weight", "fc.bias", "temperature",
    }  # fmt: skip
    headkit.graft(path, heads["birds"], tmp_path / "birds.onnx_adapter")
    predictor = headkit.Predictor(
        path, {"birds": heads["birds"], "file": tmp_path / "birds.onnx_adapter"}
    )
    assert predictor.heads == ["", "birds", "file"]
    for name, head in (("", heads["pets"]), ("birds", heads["birds"]), ("file", heads["birds"])):
        assert_close(predictor.logits(X.numpy(), name), torch_logits(model, head, X))
    # The same by ONNX Runtime alone, as its own documentation shows it.
    adapter, options = ort.LoraAdapter(), ort.RunOptions()
    adapter.Load(str(tmp_path / "birds.onnx_adapter"))
    options.add_active_adapter(adapter)
    logits, probabilities = session(path).run(None, {"pixel_values": X.numpy()}, options)
    assert_close(logits, torch_logits(model, heads["birds"], X))
    assert_close(probabilities, torch.tensor(logits / 2).softmax(1).numpy())


def test_swappable_and_merged_logits_are_equal_bit_for_bit(
    model: nn.Module, heads: dict[str, headkit.Head], exported: dict[str, Exported], tmp_path: Path
) -> None:
    headkit.export(heads["birds"], tmp_path / "merged.onnx", backbone=model)
    swapped = headkit.Predictor(exported["swappable"].path, {"birds": heads["birds"]})
    merged = headkit.Predictor(tmp_path / "merged.onnx")
    assert np.array_equal(swapped.logits(X.numpy(), "birds"), merged.logits(X.numpy()))


def test_swappable_model_refuses_heads_that_do_not_fit(
    heads: dict[str, headkit.Head], exported: dict[str, Exported], tmp_path: Path
) -> None:
    path = exported["swappable"].path
    other = head_for(active_backbone(seed=1), 3)
    refused: list[tuple[str, Any, type[Exception], str]] = [
        (
            "angles",
            heads["angles"],
            headkit.ExportError,
            "kind is 'own', but the kind of this head is 'cosine'",
        ),
        (
            "tags",
            heads["tags"],
            headkit.ExportError,
            "task is 'multiclass', but the task of this head is 'multil",
        ),
        ("other", other, headkit.BackboneMismatch, "fingerprint"),
        ("none", tmp_path / "none.onnx_adapter", headkit.ExportError, "no such file"),
    ]
    for name, head, error, message in refused:
        with pytest.raises(error, match=message):
            headkit.Predictor(path, {name: head})
    (tmp_path / "bad.onnx_adapter").write_bytes(b"no adapter")
    with pytest.raises(headkit.ExportError, match="cannot read adapter"):
        headkit.Predictor(path, {"bad": tmp_path / "bad.onnx_adapter"})
    with pytest.raises(headkit.ExportError, match="takes no other heads"):
        headkit.Predictor(exported["merged"].path, {"pets": heads["pets"]})


def test_multi_model_has_the_logits_of_each_head_alone(
    model: nn.Module, heads: dict[str, headkit.Head], exported: dict[str, Exported]
) -> None:
    path = exported["multi"].path
    running = session(path)
    assert [output.name for output in running.get_outputs()][::2] == [
        f"logits_{name}" for name in heads
    ]
    found = dict(
        zip(
            [output.name for output in running.get_outputs()],
            running.run(None, {"pixel_values": X.numpy()}),
            strict=True,
        )
    )
    for name, head in heads.items():
        expected = torch_logits(model, head, X)
        assert_close(found[f"logits_{name}"], expected)
        scaled = torch.tensor(expected) / head.temperature
        given = scaled.sigmoid() if head.task == "multilabel" else scaled.softmax(1)
        assert_close(found[f"probabilities_{name}"], given.numpy())
    # The three linear heads share one matrix product.
    products = [n for n in onnx.load(path).graph.node if n.op_type == "Gemm"]
    assert sum("stack" in node.name for node in products) == 1
    assert len(products) == 4


def test_export_of_many_heads_hashes_the_backbone_once(
    model: nn.Module,
    heads: dict[str, headkit.Head],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed = []
    original = fingerprint_module.fingerprint

    def count(*args: Any) -> str:
        hashed.append(args)
        return original(*args)

    monkeypatch.setattr(fingerprint_module, "fingerprint", count)
    assert len(heads) > 2
    headkit.export(heads, tmp_path / "model.onnx", "multi", backbone=model)
    assert len(hashed) == 1


def test_predictor_runs_several_heads_on_a_folder(
    exported: dict[str, Exported], shapes: Path, tmp_path: Path
) -> None:
    predictor = headkit.Predictor(exported["multi"].path)
    found = predictor.predict(shapes, ["pets", "birds"], top_k=1)
    assert {name: len(rows) for name, rows in found.items()} == {"pets": 24, "birds": 24}
    assert found["pets"] == predictor(sorted(shapes.rglob("*.png")), head="pets", top_k=1)
    assert {row[0]["label"] for row in found["pets"]} <= set("abcde")
    with pytest.raises(headkit.ExportError, match="several heads: choose one of pets, birds"):
        predictor(shapes)
    with pytest.raises(headkit.ExportError, match="the model has no head 'cats'"):
        predictor(shapes, head="cats")
    with pytest.raises(headkit.DataError, match="no images in the folder"):
        predictor(tmp_path, head="pets")


def test_backbone_outputs_the_features(
    model: nn.Module, heads: dict[str, headkit.Head], tmp_path: Path
) -> None:
    done = headkit.export(heads["pets"], tmp_path / "backbone.onnx", "backbone", backbone=model)
    assert done.info.heads == ()
    (found,) = session(tmp_path / "backbone.onnx").run(["features"], {"pixel_values": X.numpy()})
    with torch.inference_mode():
        expected = headkit.features(model, X)
    assert isinstance(expected, torch.Tensor)
    assert_close(found, expected.numpy())
    with pytest.raises(headkit.ExportError, match="has no heads"):
        headkit.Predictor(tmp_path / "backbone.onnx").logits(X.numpy())


def test_raw_images_have_the_logits_of_timms_transform_and_torch(
    model: nn.Module, heads: dict[str, headkit.Head], shapes: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    done = headkit.export(heads["pets"], path, backbone=model, preprocess=True)
    assert done.pixel_difference is not None
    assert done.pixel_difference < 1 / 255
    running = session(path)
    (image,) = running.get_inputs()
    assert (image.name, image.shape[0], image.shape[3]) == ("image", "batch", 3)
    transform = create_transform(**heads["pets"].pretrained_cfg, is_training=False)
    for size in ((48, 40), (300, 200), (90, 400)):
        picture = Image.open(shapes / "striped" / "0.png").resize(size)
        (found,) = running.run(None, {"image": np.asarray(picture)[None]})
        expected = torch_logits(model, heads["pets"], transform(picture)[None])
        assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
    # Images of several sizes in one call.
    mixed = [Image.open(shapes / "dark" / "0.png").resize(size) for size in ((48, 40), (60, 50))]
    predictor = headkit.Predictor(path)
    together = predictor([*mixed, mixed[0]])
    assert together[0] == together[2] == predictor(mixed[0])[0]


@pytest.mark.parametrize(
    ("architecture", "timm_kwargs"),
    [
        *SHORT.items(),
        *(pytest.param(architecture, {}, marks=pytest.mark.slow) for architecture in SHORT),
    ],
)
def test_special_classifiers_take_another_class_count(
    architecture: str, timm_kwargs: dict[str, Any], tmp_path: Path
) -> None:
    model = active_backbone(architecture, **timm_kwargs)
    first, second = head_for(model, 5), head_for(model, 3)
    done = headkit.export(first, tmp_path / "a.onnx", backbone=model)
    headkit.graft(tmp_path / "a.onnx", second, tmp_path / "b.onnx")
    x = torch.randn(2, *first.pretrained_cfg["input_size"])
    found = headkit.Predictor(tmp_path / "b.onnx").logits(x.numpy())
    assert_close(found, torch_logits(model, second, x))
    assert max(done.difference.values()) < 1e-4


def test_forms_refuse_heads_that_they_cannot_hold(
    model: nn.Module, heads: dict[str, headkit.Head], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    call: Callable[..., Any] = headkit.export
    cases: list[tuple[Any, str, dict[str, Any], str]] = [
        (heads, "merged", {}, "takes one head, found 5"),
        ({}, "multi", {}, "at least one head"),
        ({"a b": heads["pets"]}, "multi", {}, "name of a head is 'a b'"),
        ([heads["pets"]], "multi", {}, "needs named heads"),
        (heads["pets"], "backbone", {"probabilities": True}, "no probabilities"),
        (head_for(model, 2, task="regression"), "merged", {"probabilities": True}, "regression"),
        (heads["pets"], "merged", {"precision": "fp8"}, "precision is 'fp8'"),
    ]
    for given, form, options, message in cases:
        with pytest.raises(headkit.ExportError, match=message):
            call(given, path, form, backbone=model, **options)
    assert list(tmp_path.iterdir()) == []


def test_heads_of_another_pooling_or_preprocessing_are_refused(
    model: nn.Module, heads: dict[str, headkit.Head], exported: dict[str, Exported], tmp_path: Path
) -> None:
    """The weights are the same, so the fingerprint is the same too."""
    torch.manual_seed(0)
    other = headkit.load_backbone("test_resnet", pretrained=False, global_pool="max")
    weights = {n: t for n, t in model.state_dict().items() if not n.startswith("fc.")}
    other.load_state_dict(weights, strict=False)
    pooled = head_for(other, 5)
    assert pooled.backbone.fingerprint == heads["pets"].backbone.fingerprint
    with pytest.raises(
        headkit.BackboneMismatch, match="global_pool 'max', but the backbone has 'avg'"
    ):
        headkit.attach(model, pooled)
    with pytest.raises(headkit.BackboneMismatch, match="global_pool max, but the model has avg"):
        headkit.graft(exported["merged"].path, pooled, tmp_path / "out.onnx")
    cropped = heads["birds"].with_changes(
        pretrained_cfg={**heads["birds"].pretrained_cfg, "crop_pct": 0.5}
    )
    with pytest.raises(headkit.BackboneMismatch, match="pretrained_cfg"):
        headkit.export(
            {"a": heads["pets"], "b": cropped}, tmp_path / "b.onnx", "multi", backbone=model
        )


def test_export_leaves_the_callers_model_as_it_was(
    heads: dict[str, headkit.Head], tmp_path: Path
) -> None:
    own = headkit.adapt(active_backbone(), 9)
    own.train()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    modes = {name: part.training for name, part in own.named_modules()}
    headkit.export(heads, tmp_path / "model.onnx", "multi", backbone=own)
    after = own.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert modes == {name: part.training for name, part in own.named_modules()}
    loss = own(torch.randn(2, 3, 160, 160)).sum()
    torch.autograd.backward(loss)  # its classifier still trains


def test_models_of_one_channel_without_classes_and_in_half_precision(tmp_path: Path) -> None:
    gray = headkit.load_backbone("test_resnet", pretrained=False, in_chans=1)
    headkit.export(gray, tmp_path / "gray.onnx")
    x = torch.randn(2, 1, 160, 160)
    with torch.inference_mode():
        assert_close(headkit.Predictor(tmp_path / "gray.onnx").logits(x.numpy()), gray(x).numpy())
    headkit.export(gray, tmp_path / "raw.onnx", preprocess=True)
    image = np.random.default_rng(0).integers(0, 256, (160, 160), dtype=np.uint8)
    found = {
        name: {one["label"]: one["score"] for one in headkit.Predictor(tmp_path / name)(image)[0]}
        for name in ("gray.onnx", "raw.onnx")
    }
    assert found["raw.onnx"] == pytest.approx(found["gray.onnx"], abs=1e-3)
    four = headkit.load_backbone("test_resnet", pretrained=False, in_chans=4)
    with pytest.raises(ValueError, match="channels is 4, expected 1 or 3"):
        headkit.export(four, tmp_path / "four.onnx", preprocess=True)
    without = headkit.load_backbone("test_resnet", pretrained=False, num_classes=0)
    headkit.export(without, tmp_path / "backbone.onnx", "backbone")
    with torch.inference_mode():
        (found,) = session(tmp_path / "backbone.onnx").run(None, {"pixel_values": X.numpy()})
        assert_close(found, without(X).numpy())
    with pytest.raises(headkit.ExportError, match=r"float16, expected float32: call model\.float"):
        headkit.export(active_backbone().half(), tmp_path / "half.onnx")
    with pytest.raises(headkit.OutputError, match=r"expected '\.onnx' for an ONNX model"):
        headkit.export(gray, tmp_path / "head.safetensors")


def test_config_names_the_problem_and_labels_that_occur_twice(tmp_path: Path) -> None:
    model = active_backbone()
    head = head_for(model, 3, label_names=["crane", "crane", "ox"], task="multilabel")
    headkit.export(head, tmp_path / "model.onnx", backbone=model, config=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "crane", "1": "crane", "2": "ox"}
    assert config["label2id"] == {"crane": 0, "ox": 2}
    assert config["problem_type"] == "multi_label_classification"
    with pytest.raises(headkit.ExportError, match="takes pixel_values"):
        headkit.export(head, tmp_path / "raw.onnx", backbone=model, config=True, preprocess=True)
