from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import headkit
from headkit.adapters.data.folder import open_folder
from headkit.adapters.features.engine import TorchEngine
from headkit.adapters.features.extract import extract
from tests.backbones import random_backbone


def test_ray_that_is_not_installed_is_named(
    shapes: Path, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray.data", None)
    with pytest.raises(headkit.DependencyMissing, match=r"pip install headkit\[ray\]"):
        headkit.fit(small, shapes, engine="ray")


@pytest.fixture
def cluster() -> Iterator[None]:
    pytest.importorskip("ray.data")
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_ray_writes_the_same_cache(shapes: Path, tmp_path: Path) -> None:
    from headkit.adapters.features.ray_executor import fill_with_ray

    source = open_folder(shapes)
    options: dict[str, Any] = {"batch_size": 1, "workers": 0}
    engine = TorchEngine(threads=1)
    done: list[int] = []
    spread, local = (
        extract(
            random_backbone(),
            source,
            engine,
            tmp_path / name,
            fill=fill,
            progress=lambda _name, number, _total: done.append(number),
            **options,
        )
        for name, fill in (("ray", fill_with_ray), ("local", None))
    )
    names = [
        sorted(path.name for path in found.cache.folder.glob("shard-*"))
        for found in (spread, local)
    ]
    assert names[0] == names[1]
    for a, b in zip(spread.cache.load(spread.found), local.cache.load(local.found), strict=True):
        assert torch.equal(a, b)
    assert max(done) == 24


@pytest.mark.usefixtures("cluster")
def test_head_is_fitted_with_ray(shapes: Path, tmp_path: Path) -> None:
    head = headkit.fit(random_backbone(), shapes, engine="ray", cache=tmp_path)
    assert head.metrics["accuracy"] == 1
