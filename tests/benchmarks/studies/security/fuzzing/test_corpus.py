"""Inputs that once were faults are refused now, and each door takes what it should.

The folder ``corpus`` has one folder per door. Each file is one input, named after what it tries.
"""

import shutil
import sys
from pathlib import Path

import pytest

from headkit.benchmarks.studies.security.fuzzing.doors import DOORS
from headkit.benchmarks.studies.security.fuzzing.seeds import SeedFiles
from headkit.benchmarks.studies.security.fuzzing.study import Study, worker_command
from headkit.benchmarks.studies.security.fuzzing.watched import WatchedWorker
from tests.fixtures import HEADS, MODELS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the study runs on Linux")

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> SeedFiles:
    """Files of headkit 0.1 in place of those that the study exports, which takes a minute."""
    folder = tmp_path_factory.mktemp("seeds")
    for name in ("resnet_own", "resnet_mlp", "resnet_cosine", "vit_own", "deit_own"):
        path = HEADS / f"{name}.safetensors"
        shutil.copy(path, folder / path.name.replace("_", "-"))
    for name in ("resnet_merged", "resnet_swappable", "resnet_backbone", "vit_merged"):
        shutil.copy(MODELS / f"{name}.onnx", folder / f"{name.replace('_', '-')}.onnx")
    for name in ("vit", "deit"):  # the doors only need some backbone
        shutil.copy(MODELS / "resnet_backbone.onnx", folder / f"{name}-backbone.onnx")
    shutil.copy(MODELS / "resnet_other.onnx_adapter", folder / "resnet.onnx_adapter")
    return SeedFiles(folder)


@pytest.mark.parametrize("door", sorted(path.name for path in CORPUS.iterdir()))
def test_what_once_failed_is_refused(door: str, seeds: SeedFiles) -> None:
    paths = sorted((CORPUS / door).iterdir())
    assert paths
    with WatchedWorker(worker_command(door, seeds.folder, 0)) as worker:
        outcomes = {path.name: worker.attempt(f"file {path}") for path in paths}
    assert {name: one.result for name, one in outcomes.items()} == {
        path.name: "refused" for path in paths
    }


@pytest.mark.parametrize("door", DOORS)
def test_some_changed_inputs_at_each_door(door: str, seeds: SeedFiles, tmp_path: Path) -> None:
    study = Study(seeds, tmp_path / "result.json", tmp_path, seed=1, inputs=12)
    assert study.run([door]) == 0
    counts = study._read()[door]
    assert counts["inputs"] == counts["accepted"] + counts["refused"] == 12
    # It goes on where it was.
    more = Study(seeds, tmp_path / "result.json", tmp_path, seed=1, inputs=14)
    assert more.run([door]) == 0
    assert more._read()[door]["inputs"] == 14
