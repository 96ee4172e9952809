"""The cache on the disk: what it takes, how it is cleared and limited, beside other processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import headkit
from headkit.adapters.features.disk_space import (
    clear_cache,
    describe_cache,
    enforce_limit,
    limit_cache,
)
from headkit.cli.cache import format_bytes, parse_size
from tests.backbones import random_backbone

ROOT = Path(__file__).parents[3]


def _fit(root: Path, shapes: Path, architecture: str = "test_resnet", **options: Any) -> Any:
    backbone = random_backbone(architecture)
    return headkit.fit(backbone, shapes, cache=root, workers=0, levels="last", l2=1e-3, **options)


@pytest.fixture
def filled(tmp_path: Path, shapes: Path) -> Path:
    """Return a cache with features of two backbones; those of the second were used last."""
    root = tmp_path / "cache"
    _fit(root, shapes)
    _fit(root, shapes, "test_vit")
    for path in root.rglob("test_resnet-*/shard-*"):
        os.utime(path, (1e9, 1e9))
    return root


def _bytes_on_disk(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def _shards(root: Path, architecture: str) -> list[Path]:
    return list(root.rglob(f"{architecture}-*/shard-*"))


def test_cache_is_described_per_backbone(filled: Path) -> None:
    usage = describe_cache(filled)
    assert usage.folder == str(filled)
    assert usage.num_bytes == _bytes_on_disk(filled)
    assert usage.limit is None
    described = {entry.backbone: entry for entry in usage.entries}
    assert described.keys() == {"test_resnet", "test_vit"}
    for entry in described.values():
        assert (entry.images, entry.kind, entry.runtime) == (24, "features", "torch fp32")
        assert entry.input_size == (3, 160, 160)
        assert entry.num_bytes == _bytes_on_disk(Path(entry.path))
    json.dumps(usage.to_json())


def test_clearing_one_backbone_leaves_the_others(filled: Path, shapes: Path) -> None:
    before = _fit(filled, shapes).with_changes(created="")
    size = _bytes_on_disk(filled)
    freed = clear_cache(filled, "test_resnet.some_tag")
    assert freed.in_use == ()
    assert freed.num_bytes == size - _bytes_on_disk(filled) > 0
    assert [entry.backbone for entry in describe_cache(filled).entries] == ["test_vit"]
    assert _fit(filled, shapes).with_changes(created="") == before


def test_clearing_everything_leaves_an_empty_cache_that_can_be_used(
    filled: Path, shapes: Path
) -> None:
    (filled / "backbones").mkdir()
    (filled / "backbones" / "test_vit-00.onnx").write_bytes(b"x" * 99)
    (filled / "checkpoints").mkdir()
    (filled / "checkpoints" / "test_vit-00.11.safetensors").write_bytes(b"x" * 50)
    described = {entry.kind: entry for entry in describe_cache(filled).entries}
    assert described["checkpoints"].num_bytes == 50
    assert described["checkpoints"].backbone == "test_vit"
    clear_cache(filled)
    assert describe_cache(filled).entries == ()
    assert not [path for path in filled.rglob("*") if path.is_file() and "sqlite" not in path.name]
    _fit(filled, shapes)
    assert len(describe_cache(filled).entries) == 1


def test_limit_removes_what_was_used_longest_ago(filled: Path, shapes: Path) -> None:
    (vit,) = _shards(filled, "test_vit")
    for path in filled.rglob("predictions-*"):
        path.unlink()
    freed = limit_cache(vit.stat().st_size, filled)
    assert freed.files == 1
    assert _shards(filled, "test_resnet") == []
    assert _shards(filled, "test_vit") == [vit]
    assert describe_cache(filled).limit == vit.stat().st_size


def test_features_that_were_read_again_count_as_used(filled: Path, shapes: Path) -> None:
    (vit,) = _shards(filled, "test_vit")
    os.utime(vit, (2e9, 1.5e9))
    (resnet,) = _shards(filled, "test_resnet")
    _fit(filled, shapes)  # finds them in the cache
    for path in filled.rglob("predictions-*"):
        path.unlink()
    limit_cache(max(vit.stat().st_size, resnet.stat().st_size), filled)
    assert resnet.exists()
    assert not vit.exists()


def test_fit_keeps_the_cache_below_its_limit(tmp_path: Path, shapes: Path) -> None:
    root = tmp_path / "cache"
    _fit(root, shapes)
    (first,) = _shards(root, "test_resnet")
    limit_cache(sum(path.stat().st_size for path in first.parent.iterdir()), root)
    assert first.exists()
    _fit(root, shapes, "test_vit")
    assert not first.exists()
    assert _fit(root, shapes).metrics["accuracy"] == 1
    limit_cache(0, root)
    _fit(root, shapes)
    assert list(root.rglob("shard-*")) == []
    limit_cache(None, root)
    assert describe_cache(root).limit is None
    _fit(root, shapes)
    assert enforce_limit(root).files == 0
    assert len(list(root.rglob("shard-*"))) == 1


def test_converted_backbone_goes_with_its_data_and_stays_while_it_is_new(filled: Path) -> None:
    folder = filled / "backbones"
    folder.mkdir()
    model, data = folder / "test_vit-00.onnx", folder / "test_vit-00.onnx.0a.data"
    for path in (model, data):
        path.write_bytes(b"x" * 100)
    limit_cache(0, filled)
    assert model.exists()
    assert list(filled.rglob("shard-*")) == []
    old = time.time() - 3600
    os.utime(data, (old, old))
    enforce_limit(filled)
    assert data.exists()  # the model was used a moment ago
    os.utime(model, (old, old))
    enforce_limit(filled)
    assert list(folder.iterdir()) == []


HOLD = """
import sys, torch
from pathlib import Path
import json
from headkit.adapters.features.cache import FeatureCache
root = Path(sys.argv[1])
(key_file,) = root.rglob("test_resnet-*/key.json")
key = json.loads(key_file.read_text())
key.pop("format")
cache = FeatureCache(root, key)
assert cache.folder == key_file.parent
print("ready", flush=True)
sys.stdin.readline()
locations = cache.find(next(iter(cache._digests)))
(features,) = cache.load(locations)
print(len(features), flush=True)
"""


def test_features_that_another_process_uses_stay_until_it_ends(filled: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(filled)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    freed = clear_cache(filled)
    assert [Path(folder).name.partition("-")[0] for folder in freed.in_use] == ["test_resnet"]
    assert _shards(filled, "test_vit") == []
    assert limit_cache(0, filled).in_use == freed.in_use
    program.stdin.write("\n")
    program.stdin.flush()
    assert program.stdout.readline() == "24\n"
    assert program.wait() == 0
    assert clear_cache(filled).in_use == ()
    assert _shards(filled, "test_resnet") == []


def test_cache_is_cleared_over_and_over_while_another_process_fits(
    tmp_path: Path, shapes: Path
) -> None:
    program = f"""
import headkit
from tests.backbones import random_backbone
options = dict(cache={str(tmp_path)!r}, workers=0, views=2, levels="last", l2=1e-3)
heads = [headkit.fit(random_backbone(), {str(shapes)!r}, **options) for _ in range(6)]
assert all(head.with_changes(created="") == heads[0].with_changes(created="") for head in heads)
"""
    fitting = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE)
    cleared = 0
    while fitting.poll() is None:
        cleared += clear_cache(tmp_path).files
        time.sleep(0.001)
    assert fitting.stderr is not None
    assert fitting.wait() == 0, fitting.stderr.read().decode()
    assert cleared > 0


def test_damaged_limit_is_an_error_that_says_what_to_do_and_costs_no_head(
    filled: Path, shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (filled / "limit.json").write_text("{}")
    assert _fit(filled, shapes).metrics["accuracy"] == 1
    assert "set it again with `headkit cache limit`" in caplog.text
    with pytest.raises(headkit.OutputError, match="set it again with `headkit cache limit`"):
        describe_cache(filled)
    with pytest.raises(ValueError, match="max_bytes is -1"):
        limit_cache(-1, filled)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10GB", 10**10), ("1.5 GiB", 3 * 2**29), ("500m", 5 * 10**8), ("123", 123), ("7kB", 7000)],
)
def test_sizes_are_read(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "ten", "1 PB", "1e9"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as 10GB"):
        parse_size(text)


def test_commands_show_clear_and_limit_the_cache(run: Any, filled: Path) -> None:
    status, out, _ = run("cache", "--cache", filled)
    assert status == 0
    assert out.startswith(f"{filled}: {format_bytes(_bytes_on_disk(filled))}, no limit")
    assert "test_resnet" in out
    assert "features, torch fp32" in out
    status, out, _ = run("cache", "clear", "--cache", filled, "--backbone", "test_vit")
    assert status == 0
    assert "removed 3 files" in out  # a shard, its key, and predictions
    status, out, _ = run("cache", "--cache", filled, "limit", "1 GB", "--json")
    assert (status, json.loads(out)["limit"]) == (0, 10**9)
    status, out, _ = run("cache", "--cache", filled, "--json")
    assert json.loads(out)["limit"] == 10**9
    assert [entry["backbone"] for entry in json.loads(out)["entries"]] == ["test_resnet"]
    status, out, _ = run("cache", "limit", "none", "--cache", filled)
    assert (status, out.splitlines()[0]) == (0, "the cache has no limit")
    status, _, err = run("cache", "limit", "much", "--cache", filled)
    assert status == 2
    assert "size is 'much', expected a size such as 10GB or 500MB, or none" in err
