"""Another size or crop of the input: in fit, export, Predictor and evaluate as in plain timm."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

import headkit
from tests.backbones import random_backbone


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the weights of a transformer and of a convolutional network, at their own size."""
    folder = tmp_path_factory.mktemp("weights")
    found = {name: folder / f"{name}.pth" for name in ("test_vit", "test_resnet")}
    for name, path in found.items():
        torch.save(random_backbone(name).state_dict(), path)
    return found


def _plain_timm(name: str, path: Path, head: headkit.Head, size: tuple[int, int]) -> Any:
    """A model that timm alone builds for this size, with the tensors of the head."""
    built = {"img_size": size} if name == "test_vit" else {}
    overlay = {"file": str(path), "hf_hub_id": None, "url": None}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **built)
    model.reset_classifier(head.num_classes)
    tensors = {key: torch.from_numpy(tensor) for key, tensor in head.tensors.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert not set(tensors) & set(missing)
    return model.eval()


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
@pytest.mark.parametrize(
    ("size", "crop_pct", "crop_mode"),
    [((96, 96), 0.8, "center"), ((96, 128), 1.0, "squash"), ((192, 192), 0.9, "border")],
)
def test_fit_export_and_predictor_give_the_logits_of_timm_at_another_size(
    name: str,
    size: tuple[int, int],
    crop_pct: float,
    crop_mode: str,
    weights: dict[str, Path],
    shapes: Path,
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"img_size": size, "crop_pct": crop_pct, "crop_mode": crop_mode}
    if size == (96, 96):
        options["img_size"] = 96
    own = headkit.fit(name, shapes, weights=weights[name], val=shapes, workers=0, l2=1.0, **options)
    path = own.save(tmp_path / "head.safetensors")
    head = headkit.Head.load(path)
    assert tuple(head.pretrained_cfg["input_size"]) == (3, *size)
    plain = _plain_timm(name, weights[name], head, size)
    config = resolve_data_config(
        {"input_size": (3, *size), "crop_pct": crop_pct, "crop_mode": crop_mode}, model=plain
    )
    transform = create_transform(**config, is_training=False)
    paths = sorted(shapes.rglob("*.png"))[::5]
    pixels = torch.stack([transform(Image.open(one).convert("RGB")) for one in paths])
    with torch.no_grad():
        expected = plain(pixels).double().numpy()

    exported = headkit.export(path, tmp_path / "model.onnx", weights=weights[name])
    predictor = headkit.Predictor(exported.path)
    arrays = np.stack([predictor.preprocess(Image.open(one).convert("RGB")) for one in paths])
    assert np.abs(arrays - pixels.numpy()).max() < 1e-5
    found = predictor.logits(arrays)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()

    measured = headkit.evaluate(path, shapes, weights=weights[name], workers=0)
    for metric in ("accuracy", "log_loss", "recall"):
        assert measured.metrics[metric] == head.metrics[metric]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", (96, 160)),  # position embeddings
        ("swin_tiny_patch4_window7_224", (128, 128)),  # windows, relative positions
        ("xcit_nano_12_p8_224", (96, 96)),  # computed positions
        ("mobilevit_xxs", (96, 128)),  # convolutions and attention, any size
    ],
)
def test_backbone_for_another_size_equals_that_of_timm_bit_for_bit(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    own = timm.create_model(name)
    torch.save(own.state_dict(), tmp_path / "w.pth")
    built = {} if name == "mobilevit_xxs" else {"img_size": size}
    overlay = {"file": str(tmp_path / "w.pth"), "hf_hub_id": None, "url": None}
    plain = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **built).eval()
    backbone = headkit.load_backbone(name, tmp_path / "w.pth", img_size=size)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert torch.equal(backbone(x), plain(x))


def test_size_and_crop_of_an_architecture_stay_without_options(
    weights: dict[str, Path], shapes: Path
) -> None:
    head = headkit.fit("test_vit", shapes, weights=weights["test_vit"], workers=0)
    expected = resolve_data_config({}, model=timm.create_model("test_vit"))
    assert tuple(head.pretrained_cfg["input_size"]) == expected["input_size"]
    assert head.pretrained_cfg["crop_pct"] == expected["crop_pct"]


@pytest.mark.parametrize(
    ("architecture", "img_size"),
    [
        ("convnext_atto", 20),  # too small for its last stage
        ("efficientformer_l1", 192),  # attention for 7 x 7 positions
        ("coatnet_nano_rw_224", 200),  # no whole number of positions
        ("test_vit", 100),  # no whole number of patches
    ],
)
def test_size_that_an_architecture_cannot_take_is_refused_with_the_reason(
    architecture: str, img_size: int, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headkit.extraction.extract", lambda *_, **__: pytest.fail("extracted"))
    with pytest.raises(
        headkit.ContractError,
        match=rf"{architecture} cannot take {img_size} x {img_size} images: .+; choose another",
    ):
        headkit.fit(architecture, shapes, pretrained=False, img_size=img_size, workers=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": 0}, "img_size is 0, expected an edge"),
        ({"img_size": (96, 96, 3)}, "img_size is"),
        ({"img_size": 100_000}, "of 1 to 4096 pixels"),
        ({"crop_pct": 1.5}, "crop_pct is 1.5, expected a fraction"),
        ({"crop_mode": "top"}, "crop_mode is 'top', expected one of center, squash, border"),
    ],
)
def test_values_out_of_range_are_refused(options: Any, message: str, shapes: Path) -> None:
    with pytest.raises(ValueError, match=message):
        headkit.fit("test_resnet", shapes, pretrained=False, workers=0, **options)


def test_pixels_that_a_transformer_ignores_are_said(caplog: pytest.LogCaptureFixture) -> None:
    headkit.load_backbone("vit_tiny_patch16_224", pretrained=False, img_size=40)
    assert "patches of 16 x 16 pixels, so it ignores the last rows or columns" in caplog.text
    caplog.clear()
    headkit.load_backbone("vit_tiny_patch16_224", pretrained=False, img_size=48)
    assert caplog.text == ""


def test_crop_of_a_head_is_kept_when_its_backbone_is_loaded_again(
    weights: dict[str, Path], shapes: Path
) -> None:
    from headkit.adapters.backbone.preprocessing import preprocessing

    backbone: Any = headkit.load_backbone("test_resnet", weights["test_resnet"])
    backbone.pretrained_cfg = {**backbone.pretrained_cfg, "crop_pct": 0.5}  # by the user's own hand
    head = headkit.fit(backbone, shapes, workers=0)
    loaded = headkit.load_backbone_of(head, weights["test_resnet"])
    assert preprocessing(loaded) == head.pretrained_cfg
    assert preprocessing(loaded)["crop_pct"] == 0.5


def test_grey_model_of_another_size(shapes: Path, tmp_path: Path) -> None:
    model = headkit.load_backbone("test_resnet", pretrained=False, in_chans=1, img_size=96)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    head = headkit.fit(
        "test_resnet", shapes, weights=tmp_path / "w.pth", in_chans=1, img_size=96, workers=0
    )
    assert list(head.pretrained_cfg["input_size"]) == [1, 96, 96]
    path = headkit.export(head, tmp_path / "m.onnx", weights=tmp_path / "w.pth").path
    assert headkit.Predictor(path)(shapes / "dark" / "0.png")[0][0]["label"] == "dark"


def test_command_line_takes_size_and_crop(
    run: Any, weights: dict[str, Path], shapes: Path, tmp_path: Path
) -> None:
    fit = ("fit", "--backbone", "test_vit", "--weights", weights["test_vit"], "--data", shapes)
    out = tmp_path / "head.safetensors"
    status, _, err = run(
        *(*fit, "--out", out, "--workers", 0, "--img-size", "64x96", "--crop-pct", 1),
        *("--crop-mode", "squash"),
    )
    assert status == 0, err
    cfg = headkit.Head.load(out).pretrained_cfg
    assert (list(cfg["input_size"]), cfg["crop_pct"], cfg["crop_mode"]) == (
        [3, 64, 96],
        1,
        "squash",
    )
    status, _, err = run(*fit, "--out", out, "--img-size", "large")
    assert status == 2
    assert "img-size is 'large', expected an edge in pixels, or HEIGHTxWIDTH" in err
    status, _, err = run(*fit, "--out", out, "--img-size", 8)
    assert status == 2
    assert "test_vit cannot take 8 x 8 images" in err


def test_compare_takes_size_and_says_which_backbone_cannot(
    weights: dict[str, Path], shapes: Path, tmp_path: Path
) -> None:
    result = headkit.compare(shapes, weights, tmp_path, img_size=12, workers=0)
    rows = {row["name"]: row for row in result["rows"]}
    assert "test_vit cannot take 12 x 12 images" in rows["test_vit"]["error"]
    head = headkit.Head.load(tmp_path / "heads" / "test_resnet.safetensors")
    assert list(head.pretrained_cfg["input_size"]) == [3, 12, 12]
