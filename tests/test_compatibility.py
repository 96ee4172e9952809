"""Files that an earlier version wrote load today and give the same bits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import safetensors.numpy
import safetensors.torch
import timm
import torch

import headkit
from headkit.adapters.backbone.fingerprint import backbone_info
from headkit.adapters.data.open import open_data
from headkit.adapters.features.cache import FeatureCache
from headkit.adapters.features.duplicates import choose_validation
from headkit.adapters.features.extract import extract
from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.fitting.linear.solve import solve
from headkit.adapters.images.pixel_rule import VERSION_1_RULE
from headkit.benchmarks.bench.machine import machine
from headkit.export.runtimes.choose import choose_runtime
from headkit.registry.hub.card import GENERATED, build_config, config_text, render_card
from tests.fixtures.v0_1_0.make import BACKBONES, HEADS, LABELS, pixels

FOLDER = Path(__file__).parent / "fixtures" / "v0_1_0"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
NUMBERS = safetensors.numpy.load_file(FOLDER / "expected.safetensors")
MODELS = sorted(EXPECTED["models"])
SAME_MACHINE = EXPECTED["processor"] == machine()["processor"] and all(
    EXPECTED["versions"][name] == version(name) for name in ("numpy", "onnxruntime", "torch")
)
"""Whether this machine adds numbers in the same order as the one that wrote the files."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def head_file(name: str) -> Path:
    return FOLDER / "heads" / f"{name}.safetensors"


def model_file(name: str) -> Path:
    return FOLDER / "models" / f"{name}.onnx"


def load_backbone(name: str) -> Any:
    architecture, kwargs = BACKBONES[name]
    return headkit.load_backbone(architecture, FOLDER / f"backbones/{name}.safetensors", **kwargs)


def assert_same_numbers(found: np.ndarray[Any, Any], key: str) -> None:
    expected = NUMBERS[key]
    if SAME_MACHINE:
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", HEADS)
def test_head_file_loads_and_is_written_again_byte_for_byte(name: str, tmp_path: Path) -> None:
    path = head_file(name)
    head = headkit.Head.load(path)
    assert head.digest == EXPECTED["heads"][name]["digest"]
    assert head.save(tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    for tensor_name, tensor in safetensors.torch.load_file(path).items():
        loaded = head.tensors[tensor_name]
        assert loaded.tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", HEADS)
def test_head_file_gives_the_same_information(name: str) -> None:
    found = json.loads(json.dumps(headkit.info(head_file(name))))
    expected = EXPECTED["heads"][name]["info"]
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize("name", HEADS)
def test_attached_head_gives_the_same_logits(name: str) -> None:
    head = headkit.Head.load(head_file(name))
    model = headkit.attach(load_backbone(name.partition("_")[0]), head)
    size = head.pretrained_cfg["input_size"][-1]
    with torch.inference_mode():
        logits = model(torch.from_numpy(pixels(2, size)))
    assert_same_numbers(logits.float().numpy(), f"torch/{name}")


@pytest.mark.parametrize("name", ["resnet_own", "vit_own", "crossvit_own", "levit_own"])
def test_attached_head_gives_the_logits_of_plain_timm(name: str) -> None:
    backbone = name.partition("_")[0]
    architecture, kwargs = BACKBONES[backbone]
    plain = timm.create_model(architecture, pretrained=False, **kwargs)
    plain.load_state_dict(safetensors.torch.load_file(FOLDER / f"backbones/{backbone}.safetensors"))
    tensors = safetensors.torch.load_file(head_file(name))
    plain.reset_classifier(3)
    assert not plain.load_state_dict(tensors, strict=False).unexpected_keys
    head = headkit.Head.load(head_file(name))
    model = headkit.attach(load_backbone(backbone), head)
    x = torch.from_numpy(pixels(2, head.pretrained_cfg["input_size"][-1]))
    with torch.inference_mode():
        assert torch.equal(model(x), plain.eval()(x))


def test_backbone_of_a_head_is_loaded_from_the_file_that_the_user_names() -> None:
    head = headkit.Head.load(head_file("resnet_own"))
    with pytest.raises(headkit.WeightsError, match=r"resnet\.safetensors.*--weights FILE"):
        headkit.load_backbone_of(head, folder=FOLDER / "backbones")
    model = headkit.load_backbone_of(head, FOLDER / "backbones" / "resnet.safetensors")
    assert backbone_info(model).fingerprint == head.backbone.fingerprint


@pytest.mark.parametrize("name", MODELS)
def test_model_gives_the_same_logits_and_predictions(name: str) -> None:
    extra: dict[str, Any] = {}
    if name == "resnet_swappable":
        adapter = FOLDER / "models" / "resnet_other.onnx_adapter"
        extra = {"adapter": adapter, "file": head_file("resnet_other")}
    predictor = headkit.Predictor(model_file(name), extra, threads=1)
    x = pixels(2, predictor.info.backbone["pretrained_cfg"]["input_size"][-1])
    if predictor.info.preprocess:
        x = np.ascontiguousarray(((x + 1) * 125).astype(np.uint8).transpose(0, 2, 3, 1))
    expected = EXPECTED["models"][name]["predictions"]
    assert predictor.heads == list(expected) or set(predictor.heads) == set(expected)
    samples = [FOLDER / "images" / label / "0.png" for label in LABELS]
    for head, recorded in expected.items():
        assert_same_numbers(predictor.logits(x, head), f"onnx/{name}/{head}")
        for row, expected_row in zip(predictor(samples, head=head, top_k=2), recorded, strict=True):
            assert [one["label"] for one in row] == [one["label"] for one in expected_row]
            scores, expected_scores = (
                np.array([one["score"] for one in some]) for some in (row, expected_row)
            )
            if SAME_MACHINE:
                assert scores.tobytes() == expected_scores.tobytes()
            np.testing.assert_allclose(scores, expected_scores, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_model_gives_the_same_information(name: str) -> None:
    found = json.loads(json.dumps(headkit.info(model_file(name))))
    expected = EXPECTED["models"][name]["info"]
    assert {key: found.get(key) for key in expected} == expected


def run_plain(path: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"pixel_values": x})[0])


@pytest.mark.parametrize("name", ["resnet_merged", "resnet_swappable", "resnet_backbone"])
def test_graft_into_an_old_model_equals_the_old_graft(name: str, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    headkit.graft(model_file(name), head_file("resnet_other"), other)
    assert_same_numbers(run_plain(other, pixels(2, 160)), "onnx/resnet_swappable/file")


def test_graft_into_an_old_backbone_writes_the_old_bytes(tmp_path: Path) -> None:
    headkit.graft(model_file("resnet_backbone"), head_file("resnet_mlp"), tmp_path / "grafted.onnx")
    assert (tmp_path / "grafted.onnx").read_bytes() == model_file("grafted").read_bytes()


def test_adapter_made_today_equals_the_old_one(tmp_path: Path) -> None:
    made = tmp_path / "resnet_other.onnx_adapter"
    headkit.graft(model_file("resnet_swappable"), head_file("resnet_other"), made)
    old = ort.AdapterFormat.read_adapter(str(FOLDER / "models" / made.name))
    new = ort.AdapterFormat.read_adapter(str(made))
    assert new.get_adapter_version() == old.get_adapter_version()
    assert new.get_model_version() == old.get_model_version()
    arrays = [
        {key: value.numpy().tobytes() for key, value in one.get_parameters().items()}
        for one in (old, new)
    ]
    assert arrays[0] == arrays[1]


def test_export_today_describes_itself_as_the_old_one(tmp_path: Path) -> None:
    exported = headkit.export(
        head_file("resnet_own"),
        tmp_path / "resnet_merged.onnx",
        weights=FOLDER / "backbones" / "resnet.safetensors",
        config=True,
    )
    found = json.loads(json.dumps(headkit.info(exported.path)))
    expected = EXPECTED["models"]["resnet_merged"]["info"]
    changing = {"bytes", "exported_with"}
    assert {key: found[key] for key in expected.keys() - changing} == {
        key: expected[key] for key in expected.keys() - changing
    }
    config = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert config == (FOLDER / "models/resnet_merged_config.json").read_text(encoding="utf-8")
    assert_same_numbers(run_plain(exported.path, pixels(2, 160)), "onnx/resnet_merged/")


def test_old_store_resolves_and_takes_new_versions(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "store", tmp_path / "store")
    store = headkit.HeadStore(tmp_path / "store")
    assert store.verify() == []
    shapes, vit_shapes = store.list()
    assert (shapes.name, shapes.latest, shapes.versions) == ("shapes", 2, (1, 2, 3))
    assert (shapes.tags, shapes.yanked) == (("prod",), (3,))
    assert (vit_shapes.name, vit_shapes.versions) == ("vit-shapes", (1,))
    for reference, name in (
        ("shapes", "resnet_other"),
        ("shapes@prod", "resnet_own"),
        ("shapes@3", "resnet_mlp"),
        ("vit-shapes@latest", "vit_own"),
    ):
        assert store.read(reference) == head_file(name).read_bytes()
    first = store.resolve("shapes@prod")
    assert (first.version, first.publisher, first.notes) == (1, "tests", "the first")
    assert store.read(f"sha256:{first.digest[:12]}") == head_file("resnet_own").read_bytes()
    assert store.resolve("shapes@2").parent == first.digest
    assert store.publish(head_file("resnet_linear"), "shapes").version == 4


def test_files_for_the_hub_match_those_of_the_old_version() -> None:
    head = headkit.Head.load(head_file("resnet_own"))
    old_config = (FOLDER / "hub" / "config.json").read_text(encoding="utf-8")
    assert config_text(head) == old_config
    old_card = (FOLDER / "hub" / "README.md").read_text(encoding="utf-8")
    assert GENERATED in old_card  # a push overwrites it
    card = render_card("someone/shapes", {"": build_config(head)})
    lines = zip(card.splitlines(), old_card.splitlines(), strict=True)
    differing = [line for line, old in lines if line != old]
    assert len(differing) == 2, differing  # wording of the comment and of the first paragraph
    assert differing[0].startswith(GENERATED)
    assert differing[1].startswith("A classifier head for a frozen timm backbone")


def test_features_in_an_old_cache_are_found(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "cache", tmp_path / "cache")
    (key_file,) = (tmp_path / "cache").rglob("key.json")
    (shard,) = (tmp_path / "cache").rglob("shard-*.safetensors")
    key = json.loads(key_file.read_text())
    assert key.pop("format") == 1
    cache = FeatureCache(tmp_path / "cache", key)
    assert cache.folder == key_file.parent
    stored = safetensors.numpy.load_file(shard)
    digests = stored["digest"].view("S32").reshape(-1)
    locations = cache.find(digests)
    assert not locations.missing.any()
    assert cache.is_valid(locations).all()
    (features,) = cache.load(locations)
    assert features.numpy().tobytes() == stored["features"].tobytes()


def test_old_cache_is_read_instead_of_running_the_backbone(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "cache", tmp_path / "cache")
    (described,) = (tmp_path / "cache").rglob("key.json")
    recorded = json.loads(described.read_text())
    if recorded["engine"]["torch"] != torch.__version__ or any(
        version(name) != found for name, found in recorded["decoding"].items()
    ):
        pytest.skip("features of other library versions are not reused")
    backbone = load_backbone("resnet")

    def refuse(*_: object) -> None:
        raise AssertionError("the backbone ran")

    refusal = backbone.conv1.register_forward_pre_hook(refuse)
    data, _ = open_data(FOLDER / "images")
    runtime = choose_runtime("torch", "fp32", backbone)
    # The old features were computed with the rule for pixels of version 1, which ``fit`` no
    # longer uses.
    extracted = extract(backbone, data, runtime, tmp_path / "cache", rule=VERSION_1_RULE)
    assert len(list((tmp_path / "cache").rglob("shard-*.safetensors"))) == 1
    with pytest.raises(AssertionError, match="the backbone ran"):
        headkit.fit(backbone, FOLDER / "images", cache=tmp_path / "cache", runtime="torch")

    refusal.remove()
    options: dict[str, Any] = {"cache": tmp_path / "cache", "runtime": "torch", "levels": "last"}
    head = headkit.fit(backbone, FOLDER / "images", **options)
    old = headkit.Head.load(head_file("resnet_fitted"))
    assert head.label_names == old.label_names
    assert {*old.metrics} <= {*head.metrics}
    assert len(extracted.targets) == old.metrics["num_train"] + old.metrics["num_val"]
    # headkit 0.1 held out a fifth, which chose the strength, and fitted the others.
    held = choose_validation(extracted, old.task, 0.2, 0)
    train, val = (LabeledFeatures.from_views([extracted], part) for part in (~held, held))
    solution = solve(train.x, train.y, old.num_classes, x_val=val.x, y_val=val.y)
    assert (solution.l2, len(train)) == (old.metrics["l2"], old.metrics["num_train"])
    if SAME_MACHINE:
        found = solution.linear.weight.float().numpy().reshape(old.tensors["fc.weight"].shape)
        assert found.tobytes() == old.tensors["fc.weight"].tobytes()
