from pathlib import Path

import pytest
from rich.console import Console

from headkit import demo


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Return the result of the demo on 20 images of each class, of about 180."""
    return demo.run(tmp_path_factory.mktemp("demo") / "out", images_per_class=20)


def test_demo_learns_and_agrees(result: dict[str, object]) -> None:
    assert result["num_train"] == result["num_val"] == 200
    assert float(str(result["accuracy"])) >= 0.8  # the whole demo reaches more: see README
    differences = result["difference"]
    assert isinstance(differences, dict)
    assert set(differences) == {"1", "3", "8"}
    assert max(differences.values()) < 1e-4


def test_demo_leaves_files_and_a_small_head(result: dict[str, object]) -> None:
    files = result["files"]
    assert isinstance(files, dict)
    assert all(Path(path).exists() for path in files.values())
    head = Path(files["head"])
    assert head.stat().st_size <= 200_000
    assert (head.parent / "result.json").is_file()


def test_table_shows_the_figures(result: dict[str, object]) -> None:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(demo.build_table(result))
    text = capture.get()
    for word in ("validation accuracy", "head file", "difference from torch", "torch eager"):
        assert word in text
