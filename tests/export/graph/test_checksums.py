"""What changes in an exported model after its export is found before its weights are used again."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torch import nn

import headkit
from headkit.export.graph.checksums import checksum_of_backbone, checksum_of_file
from headkit.export.graph.metadata import ModelInfo
from headkit.export.serving.service import Service
from headkit.registry.store.store import HeadStore
from tests.backbones import random_backbone
from tests.heads import head_for
from tests.images import X

FLIPS = 240


@pytest.fixture(scope="module")
def model() -> Any:
    return random_backbone()


@pytest.fixture(scope="module")
def models(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    heads = {"a": head_for(model, 3, label_names=["x", "y", "z"]), "b": head_for(model, 4)}
    sources: dict[str, Any] = {
        "merged": heads["a"],
        "swappable": heads["a"],
        "multi": heads,
        "backbone": model,
    }
    for form, source in sources.items():
        own = None if source is model else model
        headkit.export(source, folder / f"{form}.onnx", form, backbone=own)
    return {form: folder / f"{form}.onnx" for form in sources}


def describe(path: Path) -> ModelInfo:
    return headkit.Predictor(path).info


def answers(path: Path) -> list[Any]:
    predictor = headkit.Predictor(path)
    return [
        (head.name, head.label_names, predictor.logits(X.numpy(), head.name).tobytes())
        for head in predictor.info.heads
    ]


@pytest.mark.parametrize("form", ["merged", "swappable", "multi", "backbone"])
def test_flipped_bit_in_a_model_never_gives_another_result_after_graft(
    form: str, model: nn.Module, models: dict[str, Path], tmp_path: Path
) -> None:
    head, name = head_for(model, 5), "b" if form == "multi" else None
    content = models[form].read_bytes()
    flipped, out = tmp_path / "flipped.onnx", tmp_path / "out.onnx"
    headkit.graft(models[form], head, out, name=name)
    expected, expected_answers, found = out.read_bytes(), answers(out), 0
    generator = random.Random(0)  # noqa: S311 - no secret
    for number in range(FLIPS):
        changed = bytearray(content)
        # Half of the flips are near the ends, where the graph and the metadata are.
        edge = (generator.randrange(40_000), len(content) - 1 - generator.randrange(40_000))
        at = edge[number // 2 % 2] if number % 2 else generator.randrange(len(content))
        changed[at] ^= 1 << generator.randrange(8)
        flipped.write_bytes(changed)
        try:
            headkit.graft(flipped, head, out, name=name)
        except headkit.HeadkitError:
            found += 1
            continue
        if out.read_bytes() != expected:
            assert answers(out) == expected_answers, f"bit of byte {at}"
    assert found > FLIPS * 0.9


@pytest.mark.parametrize("form", ["merged", "multi", "backbone"])
def test_changed_weight_is_found_by_graft_info_and_serve(
    form: str, model: nn.Module, models: dict[str, Path], tmp_path: Path
) -> None:
    changed = onnx.load(models[form])
    weights = next(one for one in changed.graph.initializer if len(one.raw_data) > 10_000)
    weights.raw_data = weights.raw_data[:-1] + bytes([weights.raw_data[-1] ^ 1])
    path, head = tmp_path / "changed.onnx", head_for(model, 5)
    onnx.save(changed, path)
    reason = r"changed\.onnx was changed after its export: its backbone does not match"
    name = "b" if form == "multi" else None
    with pytest.raises(headkit.ExportError, match=f"{reason}.*--force"):
        headkit.graft(path, head, tmp_path / "out.onnx", name=name)
    assert not (tmp_path / "out.onnx").exists()
    with pytest.raises(headkit.ExportError, match=reason):
        headkit.info(path)
    if form == "backbone":
        HeadStore(tmp_path / "store").publish(head, "flowers")
        with pytest.raises(headkit.ExportError, match=reason):
            Service(HeadStore(tmp_path / "store"), path)
    headkit.graft(path, head, tmp_path / "out.onnx", force=True, name=name)
    headkit.info(tmp_path / "out.onnx")  # the checksum is the one of the changed weights
    headkit.graft(tmp_path / "out.onnx", head, tmp_path / "again.onnx", name=name)


def test_changed_head_that_stays_is_found(
    model: nn.Module, models: dict[str, Path], tmp_path: Path
) -> None:
    changed = onnx.load(models["multi"])
    stack = next(one for one in changed.graph.initializer if one.name == "head/weight")
    array = onnx.numpy_helper.to_array(stack).copy()
    array[0, 0] += 1  # of the head a
    stack.CopyFrom(onnx.numpy_helper.from_array(array, stack.name))
    onnx.save(changed, tmp_path / "changed.onnx")
    head = head_for(model, 5)
    with pytest.raises(headkit.ExportError, match="the head 'a' in the model was changed"):
        headkit.graft(tmp_path / "changed.onnx", head, tmp_path / "out.onnx", name="b")


@pytest.mark.parametrize("form", ["merged", "swappable", "multi", "backbone"])
def test_checksum_of_the_model_in_memory_and_of_its_file_are_equal(
    form: str, model: nn.Module, models: dict[str, Path], tmp_path: Path
) -> None:
    info = describe(models[form])
    assert len(info.checksum) == 64
    loaded = onnx.load(models[form])
    assert checksum_of_backbone(loaded, info.is_of_head) == info.checksum
    assert checksum_of_file(models[form], info.is_of_head) == info.checksum
    assert checksum_of_file(models[form].read_bytes(), info.is_of_head) == info.checksum
    outside = tmp_path / "outside.onnx"
    onnx.save_model(loaded, outside, save_as_external_data=True, location="weights.data")
    assert (tmp_path / "weights.data").stat().st_size > 100_000
    assert checksum_of_file(outside, info.is_of_head) == info.checksum
    name = "b" if form == "multi" else None
    grafted = headkit.graft(outside, head_for(model, 5), tmp_path / "out.onnx", name=name)
    assert grafted.checksum == info.checksum
    data = bytearray((tmp_path / "weights.data").read_bytes())
    data[1000] ^= 1
    (tmp_path / "weights.data").write_bytes(data)
    with pytest.raises(headkit.ExportError, match="was changed after its export"):
        headkit.graft(outside, head_for(model, 5), tmp_path / "out.onnx", name=name)


def test_weights_outside_the_folder_are_not_read(models: dict[str, Path], tmp_path: Path) -> None:
    info = describe(models["backbone"])
    loaded = onnx.load(models["backbone"])
    (tmp_path / "inside").mkdir()
    path = tmp_path / "inside" / "model.onnx"
    onnx.save_model(loaded, path, save_as_external_data=True, location="weights.data")
    (tmp_path / "inside" / "weights.data").rename(tmp_path / "weights.data")
    outside = onnx.load(path, load_external_data=False)
    for tensor in outside.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.data"
    onnx.save_model(outside, path)
    with pytest.raises(ValueError, match=r"external data '\.\./weights\.data' is missing"):
        checksum_of_file(path, info.is_of_head)


def test_backbones_that_differ_have_other_checksums(tmp_path: Path) -> None:
    checksums = set()
    for seed in range(2):
        headkit.export(random_backbone(seed=seed), tmp_path / f"{seed}.onnx", "backbone")
        checksums.add(describe(tmp_path / f"{seed}.onnx").checksum)
    assert len(checksums) == 2
    assert np.all([len(one) == 64 for one in checksums])
