"""References are resolved where they are documented, and nowhere else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import headkit
from headkit.adapters.errors import HeadFormatError, RegistryError
from headkit.registry.resolve import head_name, load_head
from headkit.registry.store.store import HeadStore
from tests.backbones import SMALL, random_backbone
from tests.heads import scored_head


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HeadStore:
    """The user's own store."""
    monkeypatch.setenv("HEADKIT_STORE", str(tmp_path / "store"))
    return HeadStore()


@pytest.fixture
def real(store: HeadStore) -> headkit.Head:
    """A head of ``random_backbone()``, published as ``flowers`` with the tag ``prod``."""
    made = headkit.head_of(headkit.adapt(random_backbone(), 3), ["a", "b", "c"])
    store.publish(made, "flowers", tags=["prod"])
    return made


def test_a_reference_stands_for_a_head_file(store: HeadStore, tmp_path: Path) -> None:
    path = scored_head(1).save(tmp_path / "1.safetensors")
    store.publish(path, "flowers", tags=["prod"])
    digest = scored_head(1).digest
    for word in ("flowers", "flowers@1", "flowers@prod", f"sha256:{digest}", path, str(path)):
        assert load_head(word).digest == digest
        assert headkit.info(word)["backbone"] == scored_head(1).to_json()["backbone"]
    assert load_head(scored_head(2)).digest == scored_head(2).digest
    with pytest.raises(HeadFormatError, match=r"a ResNet, expected a head.*head_of\(model\)"):
        load_head(random_backbone())
    with pytest.raises(RegistryError, match=r"no file flowrs, and .* no head 'flowrs'"):
        load_head("flowrs")
    with pytest.raises(HeadFormatError, match="no such file"):
        load_head("flowrs.safetensors")


def test_a_folder_of_the_same_name_does_not_hide_a_head(
    store: HeadStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowers").mkdir()
    store.publish(scored_head(1), "flowers")
    assert load_head("flowers").digest == scored_head(1).digest


def test_reading_by_reference_needs_no_torch(tmp_path: Path) -> None:
    HeadStore(tmp_path / "store").publish(scored_head(1), "flowers")
    program = (
        "import sys; from headkit.registry.resolve import load_head; load_head('flowers@1');"
        "print('torch' in sys.modules)"
    )
    environment = {
        **os.environ,
        "HEADKIT_STORE": str(tmp_path / "store"),
        "HEADKIT_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


def test_head_load_and_attach_take_files_alone_and_ask_no_store(
    real: headkit.Head, store: HeadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is in the store, so that a store that is asked would give it."""

    def asked(*_: object, **__: object) -> None:
        pytest.fail("the store was asked")

    monkeypatch.setattr("headkit.registry.store.store.HeadStore.__init__", asked)
    for word in ("flowers", "flowers@1", f"sha256:{real.digest}"):
        with pytest.raises(HeadFormatError, match=f"cannot read head {word}: no such file"):
            headkit.Head.load(word)
        with pytest.raises(HeadFormatError, match=f"cannot read head {word}: no such file"):
            headkit.attach(random_backbone(), word)


def test_a_mistyped_path_touches_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADKIT_STORE", str(tmp_path / "store"))
    (tmp_path / "store").mkdir()
    before = (tmp_path / "store").stat()
    with pytest.raises(HeadFormatError, match="cannot read head flowers: no such file"):
        headkit.Head.load("flowers")
    assert list((tmp_path / "store").iterdir()) == []
    assert (tmp_path / "store").stat().st_mtime_ns == before.st_mtime_ns


def test_export_graft_predictor_and_bench_take_references(
    real: headkit.Head, small_weights: Path, tmp_path: Path
) -> None:
    exported = headkit.export(
        "flowers@prod", tmp_path / "m.onnx", "swappable", weights=small_weights
    )
    assert exported.info.heads[0].head_id == real.digest
    grafted = headkit.graft(tmp_path / "m.onnx", "flowers", tmp_path / "g.onnx")
    assert grafted.heads[0].head_id == real.digest
    predictor = headkit.Predictor(tmp_path / "m.onnx", {"again": "flowers@1"})
    assert predictor.heads == ["", "again"]
    many = headkit.export(["flowers@prod"], tmp_path / "multi.onnx", "multi", weights=small_weights)
    assert [one.name for one in many.info.heads] == ["flowers"]
    measured = headkit.bench(
        ["flowers"],
        weights=small_weights,
        runtimes=["onnxruntime"],
        precisions=["fp32"],
        devices=["cpu"],
        batches=[1],
        repeats=1,
        rounds=1,
        cold_starts=0,
    )
    assert [row["model"] for row in measured["rows"]] == ["flowers"]
    assert headkit.info("flowers")["architecture"] == SMALL


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("heads/flowers.safetensors", "flowers"),
        ("flowers.onnx_adapter", "flowers"),
        ("flowers@prod", "flowers"),
        ("sha256:0123abcd", "0123abcd"),
    ],
)
def test_a_head_is_called_as_its_file_or_as_it_was_published(word: str, name: str) -> None:
    assert head_name(word) == name
