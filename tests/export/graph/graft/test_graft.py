import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import headkit
from tests.backbones import random_backbone
from tests.heads import head_for
from tests.images import X
from tests.logits import assert_close, torch_logits


@pytest.mark.parametrize("name", ["new", "mlp"])
def test_grafted_model_is_the_exported_one_bit_for_bit(
    model: nn.Module, heads: dict[str, headkit.Head], merged: Path, name: str, tmp_path: Path
) -> None:
    headkit.export(heads[name], tmp_path / "export.onnx", backbone=model, probabilities=True)
    info = headkit.graft(merged, heads[name], tmp_path / "graft.onnx")
    found = headkit.Predictor(tmp_path / "graft.onnx")
    assert np.array_equal(
        found.logits(X.numpy()), headkit.Predictor(tmp_path / "export.onnx").logits(X.numpy())
    )
    assert found.info == info
    assert info.heads[0].head_id == heads[name].digest
    onnx.checker.check_model(onnx.load(tmp_path / "graft.onnx"), full_check=True)
    assert headkit.info(tmp_path / "graft.onnx")["head_id"] == heads[name].digest


def test_graft_of_the_same_head_gives_the_same_graph(
    heads: dict[str, headkit.Head], merged: Path, tmp_path: Path
) -> None:
    headkit.graft(merged, heads["new"], tmp_path / "a.onnx")
    headkit.graft(tmp_path / "a.onnx", heads["old"], tmp_path / "b.onnx")
    before, after = onnx.load(merged), onnx.load(tmp_path / "b.onnx")
    assert list(before.graph.node) == list(after.graph.node)
    assert {t.name: t.raw_data for t in before.graph.initializer} == {
        t.name: t.raw_data for t in after.graph.initializer
    }


def test_graft_onto_the_file_itself(
    model: nn.Module, heads: dict[str, headkit.Head], merged: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(merged.read_bytes())
    with pytest.raises(
        headkit.OutputError, match=r"it is the model itself; .*--overwrite.*--force"
    ):
        headkit.graft(path, heads["new"], path)
    stranger = head_for(random_backbone(seed=1), 4)
    with pytest.raises(headkit.BackboneMismatch, match="fingerprint"):
        headkit.graft(path, stranger, path, overwrite=True)
    assert path.read_bytes() == merged.read_bytes()
    headkit.graft(path, heads["new"], path, overwrite=True)
    assert_close(headkit.Predictor(path).logits(X.numpy()), torch_logits(model, heads["new"], X))
    headkit.graft(path, stranger, path, force=True)
    headkit.attach(model, stranger, force=True)
    with torch.inference_mode():
        assert_close(headkit.Predictor(path).logits(X.numpy()), model(X).numpy())


def test_backbone_becomes_a_merged_model(
    model: nn.Module, heads: dict[str, headkit.Head], tmp_path: Path
) -> None:
    headkit.export(heads["old"], tmp_path / "backbone.onnx", "backbone", backbone=model)
    info = headkit.graft(tmp_path / "backbone.onnx", heads["new"], tmp_path / "model.onnx")
    assert info.form == "merged"
    found = headkit.Predictor(tmp_path / "model.onnx").logits(X.numpy())
    assert_close(found, torch_logits(model, heads["new"], X))


def test_heads_of_a_multi_model_are_replaced_and_added(
    model: nn.Module, heads: dict[str, headkit.Head], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    headkit.export({"a": heads["old"], "b": heads["mlp"]}, path, "multi", backbone=model)
    files = {name: head.save(tmp_path / f"{name}.safetensors") for name, head in heads.items()}
    headkit.graft(path, heads["new"], path, name="a", overwrite=True)
    headkit.graft(path, files["old"], path, add=True, overwrite=True)
    headkit.graft(path, heads["mlp"], path, name="c", add=True, overwrite=True)
    predictor = headkit.Predictor(path)
    placed = {"a": heads["new"], "b": heads["mlp"], "old": heads["old"], "c": heads["mlp"]}
    assert predictor.heads == list(placed)
    for name, head in placed.items():
        assert_close(predictor.logits(X.numpy(), name), torch_logits(model, head, X))
        assert predictor.info.head(name).head_id == head.digest
    with pytest.raises(headkit.ExportError, match="already has a head 'a'"):
        headkit.graft(path, heads["new"], path, name="a", add=True, overwrite=True)
    with pytest.raises(headkit.ExportError, match="no head 'z' to replace; it has a, b, old, c"):
        headkit.graft(path, heads["new"], path, name="z", overwrite=True)
    with pytest.raises(headkit.ExportError, match="has the heads a, b, old, c: pass name=NAME"):
        headkit.graft(path, heads["new"], path, overwrite=True)


def test_wrong_backbones_and_heads_are_refused_and_lose_nothing(
    model: nn.Module, heads: dict[str, headkit.Head], merged: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    same_shape = head_for(random_backbone(seed=1), 4)
    cases: list[tuple[headkit.Head, dict[str, Any], type[Exception], str]] = [
        (
            same_shape,
            {},
            headkit.BackboneMismatch,
            "fingerprint .* the model's weights have .*--force",
        ),
        (
            head_for(random_backbone("test_vit"), 4),
            {},
            headkit.BackboneMismatch,
            "trained on test_vit",
        ),
        (heads["new"], {"add": True}, headkit.ExportError, "only a multi model takes more"),
        (head_for(model, 2, task="regression"), {}, headkit.ExportError, "regression"),
    ]
    for head, options, error, message in cases:
        with pytest.raises(error, match=message):
            headkit.graft(merged, head, out, **options)
    with pytest.raises(headkit.ExportError, match="takes no adapters"):
        headkit.graft(merged, heads["new"], tmp_path / "new.onnx_adapter")
    assert out.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]
    headkit.graft(merged, same_shape, out, force=True)
    headkit.attach(model, same_shape, force=True)
    with torch.inference_mode():
        assert_close(headkit.Predictor(out).logits(X.numpy()), model(X).numpy())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_file_stays_open(
    model: nn.Module, heads: dict[str, headkit.Head], merged: Path, tmp_path: Path
) -> None:
    def mapped() -> bool:
        return str(merged) in Path("/proc/self/maps").read_text()

    headkit.graft(merged, heads["new"], tmp_path / "out.onnx")
    assert not mapped()
    other = head_for(random_backbone(seed=1), 4)
    with pytest.raises(headkit.BackboneMismatch) as caught:  # its traceback keeps the frames alive
        headkit.graft(merged, other, tmp_path / "out.onnx")
    assert caught.tb is not None
    assert not mapped()


def test_cost_of_a_precision_is_removed_with_its_head(
    model: nn.Module, heads: dict[str, headkit.Head], merged: Path, tmp_path: Path
) -> None:
    many = tmp_path / "multi.onnx"
    headkit.export({"a": heads["old"], "b": heads["mlp"]}, many, "multi", backbone=model)
    for path, names, name in ((merged, [""], None), (many, ["a", "b"], "a")):
        measured = onnx.load(path)
        for entry in measured.metadata_props:
            if entry.key == "cost":
                entry.value = json.dumps({one: {"agreement": 0.9} for one in names})
        onnx.save(measured, tmp_path / "measured.onnx")
        info = headkit.graft(
            tmp_path / "measured.onnx", heads["new"], tmp_path / "out.onnx", name=name
        )
        assert list(info.cost) == names[1:]
        assert headkit.Predictor(tmp_path / "out.onnx").info.cost == info.cost


def test_head_file_and_other_suffixes_are_refused_as_output(
    heads: dict[str, headkit.Head], merged: Path, tmp_path: Path
) -> None:
    head = tmp_path / "head.onnx"
    head.write_bytes(heads["new"].serialize())
    content = head.read_bytes()
    with pytest.raises(headkit.OutputError, match="it is the head file"):
        headkit.graft(merged, head, tmp_path / "." / "head.onnx")
    (tmp_path / "link.onnx").hardlink_to(head)
    with pytest.raises(headkit.OutputError, match="it is the head file"):
        headkit.graft(merged, head, tmp_path / "link.onnx")
    for name in ("head.safetensors", "head", "head.onnx_adapters"):
        with pytest.raises(headkit.OutputError, match=r"expected '\.onnx' .* or '\.onnx_adapter'"):
            headkit.graft(merged, head, tmp_path / name)
    assert head.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.onnx", "link.onnx"]


def test_head_whose_tensors_have_other_names_is_refused(
    heads: dict[str, headkit.Head], merged: Path, tmp_path: Path
) -> None:
    new, mlp = heads["new"], heads["mlp"]
    tensors = {name.replace("fc.", "head."): tensor for name, tensor in new.tensors.items()}
    with pytest.raises(headkit.ExportError, match=r"head\.weight.* model's own head .* fc\.weight"):
        headkit.graft(merged, new.with_changes(tensors=tensors), tmp_path / "out.onnx")
    # Another kind has other tensors, but none of the backbone's, which are not decoded here.
    graph = onnx.load(merged).graph
    constants = {tensor.name for tensor in graph.initializer}
    weight = next(n for n in constants if n.endswith(".weight") and not n.startswith("fc."))
    linear = {weight: new.tensors["fc.weight"]}
    head = new.with_changes(kind="linear", tensors=linear)
    with pytest.raises(headkit.ExportError, match=f"tensors {weight} have names that the model"):
        headkit.graft(merged, head, tmp_path / "out.onnx")
    for name in (graph.node[0].output[0], "pixel_values", "probabilities", "head/scaled"):
        # The head refuses a tensor that its kind does not have; own classifiers may have any.
        further = {**mlp.tensors, name: np.zeros(3, np.float32)}
        with pytest.raises(headkit.HeadFormatError, match=f"has the tensor '{name}'"):
            mlp.with_changes(tensors=further)
        own = new.with_changes(tensors={**new.tensors, name: np.zeros(3, np.float32)})
        with pytest.raises(headkit.ExportError):
            headkit.graft(merged, own, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_bias_can_be_removed_and_added_again(
    model: nn.Module, heads: dict[str, headkit.Head], merged: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.onnx"
    weight = np.asarray(heads["new"].tensors["fc.weight"])
    plain = heads["new"].with_changes(tensors={"fc.weight": weight})
    headkit.graft(merged, plain, path)
    with torch.inference_mode():
        entered = headkit.features(model, X)
    assert isinstance(entered, torch.Tensor)
    assert_close(headkit.Predictor(path).logits(X.numpy()), entered.numpy() @ weight.T)
    headkit.graft(path, heads["new"], path, overwrite=True)
    assert_close(headkit.Predictor(path).logits(X.numpy()), torch_logits(model, heads["new"], X))


def test_graft_needs_neither_torch_nor_timm(
    heads: dict[str, headkit.Head], merged: Path, tmp_path: Path
) -> None:
    head = heads["new"].save(tmp_path / "new.safetensors")
    code = (
        "import sys, json\n"
        "for name in ('torch', 'timm', 'torchvision'): sys.modules[name] = None\n"
        "import headkit\n"
        f"info = headkit.graft({str(merged)!r}, {str(head)!r}, {str(tmp_path / 'out.onnx')!r})\n"
        "print(json.dumps([one.num_classes for one in info.heads]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [7]


def test_half_precision_head_is_grafted_as_float32(
    model: nn.Module, heads: dict[str, headkit.Head], merged: Path, tmp_path: Path
) -> None:
    half = heads["new"].with_changes(
        tensors={n: np.asarray(t).astype(np.float16) for n, t in heads["new"].tensors.items()}
    )
    info = headkit.graft(merged, half, tmp_path / "out.onnx")
    assert info.heads[0].head_id == half.digest
    found = headkit.Predictor(tmp_path / "out.onnx").logits(X.numpy())
    with torch.inference_mode():
        expected = torch_logits(model, heads["new"], X)
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()
