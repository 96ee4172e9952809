import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from headkit.export.preprocess.pillow import Preprocess

CFG = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    size=st.sampled_from([(32, 32), (33, 33), (24, 40), (64, 48)]),
    crop_pct=st.sampled_from([0.875, 0.9, 0.95, 1.0]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest", "lanczos"]),
    seed=st.integers(0, 9),
)
def test_equal_to_timms_eval_transform(
    width: int,
    height: int,
    size: tuple[int, int],
    crop_pct: float,
    crop_mode: str,
    interpolation: str,
    seed: int,
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    cfg = {
        **CFG,
        "input_size": [3, *size],
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "interpolation": interpolation,
    }
    found = Preprocess.from_cfg(cfg)(image)
    try:
        expected = create_transform(**cfg, is_training=False)(image).numpy()
    except ValueError:  # a line of pixels, padded by `border`: timm scales its width to 0
        assume(False)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_any_image_mode_is_read_as_rgb(mode: str) -> None:
    image = Image.effect_mandelbrot((50, 40), (-2, -1, 1, 1), 50).convert("RGB").convert(mode)
    cfg = {
        **CFG,
        "input_size": [3, 32, 32],
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bicubic",
    }
    expected = create_transform(**cfg, is_training=False)(image.convert("RGB")).numpy()
    assert np.array_equal(Preprocess.from_cfg(cfg)(image), expected)


def test_unknown_values_are_refused() -> None:
    cfg = {**CFG, "crop_pct": 1.0, "crop_mode": "center"}
    with pytest.raises(ValueError, match="channels is 4, expected 1 or 3"):
        Preprocess.from_cfg({**cfg, "input_size": [4, 32, 32], "interpolation": "bicubic"})
    with pytest.raises(ValueError, match="random"):
        Preprocess.from_cfg({**cfg, "input_size": [3, 32, 32], "interpolation": "random"})
