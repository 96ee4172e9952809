import copy
import hashlib
import pickle
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

import headkit
from tests.backbones import SMALL, random_backbone

DAISY, PALACE = 985, 698  # indices of ImageNet-1k


def test_real_weights_classify_a_flower_as_daisy_and_china_as_palace(real_weights: Path) -> None:
    model = headkit.load_backbone("tf_efficientnet_lite0", real_weights)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    photos = [Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("flower", "china")]
    with torch.inference_mode():
        probabilities = model(torch.stack([transform(photo) for photo in photos])).softmax(1)
    scores, classes = probabilities.max(1)
    assert classes.tolist() == [DAISY, PALACE]
    assert scores.tolist() == pytest.approx([0.32, 0.30], abs=0.005)


def test_weights_file_makes_the_model_that_timm_itself_loads(small_weights: Path) -> None:
    expected = timm.create_model(SMALL)
    expected.load_state_dict(load_file(small_weights))
    model = headkit.load_backbone(SMALL, small_weights)
    x = torch.rand(2, 3, 160, 160)
    assert torch.equal(model(x), expected.eval()(x))


def test_pth_is_read_and_a_pickled_object_is_refused(tmp_path: Path) -> None:
    state = random_backbone().state_dict()
    torch.save(state, tmp_path / "good.pth")
    assert headkit.load_backbone(SMALL, tmp_path / "good.pth")
    torch.save({"state_dict": state, "extra": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(headkit.WeightsError, match="weights_only"):
        headkit.load_backbone(SMALL, tmp_path / "evil.pth")
    assert not _Evil.ran


class _Evil:
    ran = False

    def __reduce__(self) -> tuple[object, ...]:
        return (_run, ())


def _run() -> None:
    _Evil.ran = True


def test_backbone_is_frozen_and_in_eval_mode(small: nn.Module) -> None:
    assert not small.training
    trained = {name for name, p in small.named_parameters() if p.requires_grad}
    assert trained == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("way", ["itself", "deepcopy", "pickle"])
def test_training_in_train_mode_keeps_the_fingerprint(way: str) -> None:
    model = headkit.adapt(random_backbone(), 3)
    if way == "deepcopy":
        model = copy.deepcopy(model)
    elif way == "pickle":
        model = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    before = headkit.head_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        model.train()
        loss = nn.functional.cross_entropy(
            model(torch.rand(4, 3, 160, 160)), torch.tensor([0, 1, 2, 0])
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    after = headkit.head_of(model)
    assert after.backbone.fingerprint == before.backbone.fingerprint
    assert (after.tensors["fc.weight"] != before.tensors["fc.weight"]).any()


def test_plain_timm_training_does_change_the_fingerprint() -> None:
    """The test above can fail: without freezing, BatchNorm statistics move the fingerprint."""
    model = timm.create_model(SMALL, num_classes=3)
    before = headkit.head_of(model).backbone.fingerprint
    model.train()(torch.rand(4, 3, 160, 160))
    assert headkit.head_of(model).backbone.fingerprint != before


def test_fingerprint_follows_its_specification() -> None:
    state = {"b": torch.tensor(3), "a": torch.tensor([[1.0, 2.0]]), "fc.weight": torch.ones(2)}
    digest = hashlib.sha256(
        b"a\tF32\t1,2\n" + b"\x00\x00\x80\x3f\x00\x00\x00\x40" + b"b\tI64\t\n" + b"\x03" + bytes(7)
    )
    assert headkit.fingerprint(state, {"fc.weight"}) == digest.hexdigest()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet5O", "resnet50"), ("vit_smal_patch16_224", "vit_small_patch16_224")],
)
def test_unknown_architecture_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(headkit.UnknownArchitecture, match=nearest):
        headkit.load_backbone(name)


def test_unknown_tag_lists_the_tags() -> None:
    with pytest.raises(headkit.UnknownArchitecture, match=r"no pretrained tag 'a9_in1k'.*a1_in1k"):
        headkit.load_backbone("resnet50.a9_in1k")


def test_weights_under_other_names_need_remap(tmp_path: Path) -> None:
    state = random_backbone().state_dict()
    save_file({f"x{i:04}": tensor for i, tensor in enumerate(state.values())}, tmp_path / "x.st")
    renamed = tmp_path / "x.pth"
    torch.save({f"x{i:04}": tensor for i, tensor in enumerate(state.values())}, renamed)
    with pytest.raises(headkit.WeightsError, match="remap=True"):
        headkit.load_backbone(SMALL, renamed)
    model = headkit.load_backbone(SMALL, renamed, remap=True)
    assert headkit.fingerprint(model.state_dict()) == headkit.fingerprint(state)


def test_remap_refuses_other_shapes(tmp_path: Path) -> None:
    state = random_backbone().state_dict()
    state["conv1.0.weight"] = state["conv1.0.weight"][:, :1].clone()
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(headkit.WeightsError, match=r"conv1\.0\.weight has the shape"):
        headkit.load_backbone(SMALL, tmp_path / "other.pth", remap=True)


def test_missing_and_damaged_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(headkit.WeightsError, match="no such file"):
        headkit.load_backbone(SMALL, tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not tensors")
    with pytest.raises(headkit.WeightsError, match=r"bad\.safetensors"):
        headkit.load_backbone(SMALL, tmp_path / "bad.safetensors")


def test_weights_that_cannot_be_downloaded_are_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(headkit.WeightsError, match=r"--weights FILE.*pretrained=False"):
        headkit.load_backbone("resnet10t")
