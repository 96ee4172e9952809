from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import headkit
from headkit.adapters.data.folder import open_folder
from headkit.adapters.features.cache import FeatureCache
from headkit.adapters.features.executors.local import extract_locally
from headkit.adapters.features.extract import extract
from headkit.export.runtimes.torch import TorchRuntime
from tests.backbones import random_backbone


def test_missing_ray_is_reported_with_the_line_that_installs_it(
    shapes: Path, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray.data", None)
    with pytest.raises(headkit.DependencyMissing, match=r'pip install "headkit\[ray\]"'):
        headkit.fit(small, shapes, executor="ray")


@pytest.fixture
def cluster() -> Iterator[None]:
    pytest.importorskip("ray.data")
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_ray_writes_the_same_cache(shapes: Path, tmp_path: Path) -> None:
    from headkit.adapters.features.executors.ray import extract_with_ray

    dataset = open_folder(shapes)
    options: dict[str, Any] = {"batch_size": 1, "workers": 0}
    runtime = TorchRuntime(threads=1)
    done: list[int] = []
    with_ray, local = (
        extract(
            random_backbone(),
            dataset,
            runtime,
            tmp_path / name,
            executor=executor,
            progress=lambda _name, number, _total: done.append(number),
            **options,
        )
        for name, executor in (("ray", extract_with_ray), ("local", extract_locally))
    )
    assert isinstance(with_ray.cache, FeatureCache)
    assert isinstance(local.cache, FeatureCache)
    names = [
        sorted(path.name for path in cache.folder.glob("shard-*"))
        for cache in (with_ray.cache, local.cache)
    ]
    assert names[0] == names[1]
    branches = (extracted.cache.load(extracted.locations) for extracted in (with_ray, local))
    for a, b in zip(*branches, strict=True):
        assert torch.equal(a, b)
    assert max(done) == 24


@pytest.mark.usefixtures("cluster")
def test_head_is_fitted_with_ray(shapes: Path, tmp_path: Path) -> None:
    head = headkit.fit(random_backbone(), shapes, executor="ray", cache=tmp_path)
    assert head.metrics["accuracy"] == 1


def test_unknown_executor_is_refused(shapes: Path, small: Any) -> None:
    with pytest.raises(
        headkit.HeadkitError, match="executor is 'dask', expected one of local, ray"
    ):
        headkit.fit(small, shapes, executor="dask")
    with pytest.raises(headkit.HeadkitError, match="runtime is 'ray', expected one of auto, torch"):
        headkit.fit(small, shapes, runtime="ray")
