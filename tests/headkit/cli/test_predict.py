"""``headkit predict``: files, folders, standard input, and bad images among good ones."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import headkit
from tests.fixtures import HEADS, IMAGES, MODELS

Run = Callable[..., tuple[int, str, str]]
MODEL = MODELS / "resnet_merged.onnx"
MULTI = MODELS / "resnet_multi.onnx"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of four images, of which two cannot be read, and other files."""
    folder = tmp_path / "photos"
    for name in ("bright", "dark"):
        (folder / name).mkdir(parents=True)
        shutil.copy(IMAGES / name / "0.png", folder / name / "0.png")
    (folder / "bright" / "cut.png").write_bytes((IMAGES / "dark" / "0.png").read_bytes()[:60])
    Image.new("L", (50_000, 1)).save(folder / "dark" / "thin.png")
    (folder / "dark" / "notes.txt").write_text("none")
    (folder / ".thumbs").mkdir()
    shutil.copy(IMAGES / "dark" / "0.png", folder / ".thumbs")
    return folder


NAMES = ["bright/0.png", "bright/cut.png", "dark/0.png", "dark/thin.png"]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def give(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Put ``content`` on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def expected(paths: Iterable[Path], **options: Any) -> list[Any]:
    return headkit.Predictor(MODEL)(list(paths), **options)


def test_predict_goes_on_after_bad_images(run: Run, photos: Path) -> None:
    status, out, err = run("predict", MODEL, photos, "--top-k", 1)
    assert status == 1
    lines = out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [str(photos / name) for name in NAMES]
    assert "error: " in lines[1]
    assert lines[3].endswith("expected at most 25,000,000: crop the image")
    assert " 0." in lines[2]
    assert "2 of 4 images could not be read" in err
    assert "skipped in folders: 1 in a hidden or system folder, 1 not an image: .txt" in err


def test_predict_writes_a_table(run: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.csv"
    status, printed, err = run("predict", MODEL, photos, "--out", out, "--top-k", 2)
    assert status == 1
    assert printed == f"{out}: 4 images\n"
    assert "2 of 4 images could not be read" in err
    rows = table(out)
    assert list(rows[0]) == ["image", "label", "score", "label_2", "score_2", "error"]
    assert [row["image"] for row in rows] == [str(photos / name) for name in NAMES]
    good, bad = rows[::2], rows[1::2]
    assert [row["label"] for row in bad] == ["", ""]
    assert "formats" in bad[0]["error"] or "truncated" in bad[0]["error"]
    assert "50000 x 1 pixels" in bad[1]["error"]
    predictions = expected([photos / name for name in NAMES[::2]], top_k=2)
    for row, (first, second) in zip(good, predictions, strict=True):
        assert (row["label"], row["label_2"]) == (first["label"], second["label"])
        assert float(row["score"]) == pytest.approx(first["score"])
        assert float(row["score_2"]) == pytest.approx(second["score"])
        assert row["error"] == ""


def test_predict_writes_json_lines(run: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.JSONL"
    status, printed, _ = run("predict", MODEL, photos, "--out", out, "--json")
    assert status == 1
    assert json.loads(printed) == {
        "out": str(out),
        "images": 4,
        "unreadable": 2,
        "skipped": {"in a hidden or system folder": 1, "not an image: .txt": 1},
    }
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["image"] for row in rows] == [str(photos / name) for name in NAMES]
    assert ["error" in row for row in rows] == [False, True, False, True]
    assert rows[1]["predictions"] == []
    for row, predictions in zip(rows[::2], expected([photos / n for n in NAMES[::2]]), strict=True):
        assert row["predictions"] == [
            {"label": one["label"], "score": pytest.approx(one["score"])} for one in predictions
        ]


def test_json_on_standard_output_is_one_array(run: Run, photos: Path) -> None:
    status, out, _ = run("predict", MODEL, photos, "--json")
    assert status == 1
    assert [set(row) for row in json.loads(out)] == [
        {"image", "predictions"},
        {"image", "predictions", "error"},
    ] * 2


@pytest.mark.parametrize(
    ("limit", "expected_status"), [(0.5, 0), (1, 1), ("0.49", 1), (None, 1), (2, 2), (-0.1, 2)]
)
def test_exit_status_says_whether_too_many_images_are_unreadable(
    run: Run, photos: Path, limit: float | None, expected_status: int
) -> None:
    option = () if limit is None else ("--max-unreadable", limit)
    images = [photos / "dark" / "thin.png"] if limit == 1 else [photos]  # all are unreadable
    status, out, err = run("predict", MODEL, *images, *option)
    assert status == expected_status
    assert (out == "") == (status == 2)
    assert status != 2 or "expected a fraction from 0 to 1" in err


def test_good_images_give_no_word_on_standard_error(run: Run, photos: Path) -> None:
    status, _, err = run("predict", MODEL, photos / "dark" / "0.png")
    assert (status, err) == (0, "")


def test_paths_come_from_standard_input(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = photos / 'größe, "2".png'
    shutil.copy(IMAGES / "dark" / "1.png", odd)
    lines = [photos / "dark" / "0.png", "", odd, photos / "none.png", photos / "bright"]
    give(monkeypatch, "\r\n".join(map(str, lines)).encode())
    out = tmp_path / "out.csv"
    status, _, err = run("predict", MODEL, "-", "--out", out)
    assert status == 1
    assert "2 of 5 images" in err
    rows = table(out)
    assert [Path(row["image"]).name for row in rows] == [
        "0.png",
        odd.name,
        "none.png",
        "0.png",
        "cut.png",
    ]
    assert rows[2]["error"] == "no such file"
    assert rows[1]["label"] != ""


@pytest.mark.parametrize("content", [b"", b"\n\n\r\n"])
def test_an_empty_list_is_an_error(
    run: Run, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("precious")
    give(monkeypatch, content)
    status, printed, err = run("predict", MODEL, "-", "--out", out)
    assert (status, printed) == (2, "")
    assert "no paths on standard input" in err
    assert out.read_text() == "precious"
    give(monkeypatch, content)
    assert run("predict", MODEL, "-", "--json")[:2] == (2, "")


def test_rows_appear_while_paths_arrive() -> None:
    command = [sys.executable, "-m", "headkit", "predict", str(MODEL), "-", "--batch-size", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        path = IMAGES / "dark" / "0.png"
        for _ in range(3):
            process.stdin.write(os.fsencode(path) + b"\n")
            process.stdin.flush()
            assert process.stdout.readline().startswith(os.fsencode(path))
        process.stdin.close()
        assert process.stdout.read() == b""


def test_a_reader_that_stops_ends_the_command_without_a_traceback(photos: Path) -> None:
    images = [str(photos / "dark" / "0.png")] * 40
    command = [sys.executable, "-m", "headkit", "predict", str(MODEL), *images]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_several_heads_have_a_column(run: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    names = ("--name", "own", "--name", "mlp")
    assert run("predict", MULTI, photos / "bright", *names, "--out", out)[0] == 1
    rows = table(out)
    assert [row["head"] for row in rows] == ["own", "mlp", ""]
    found = headkit.Predictor(MULTI).predict(photos / "bright" / "0.png", ["own", "mlp"])
    for row in rows[:2]:
        assert row["label"] == found[row["head"]][0][0]["label"]
    assert rows[2]["error"] != ""
    swappable = ("predict", MODELS / "resnet_swappable.onnx", photos / "bright")
    own = HEADS / "resnet_own.safetensors"
    status, printed, _ = run(*swappable, "--head", own, "--json", "--top-k", 1)
    assert status == 1
    assert [row.get("head") for row in json.loads(printed)] == ["resnet_own", None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "out.txt"), "its suffix is '.txt', expected '.csv' for a table or '.jsonl'"),
        (("--out", "out"), "its suffix is ''"),
        (("--provider-option", "x"), "'x', expected KEY=VALUE"),
        (("--provider-option", "a=1"), "the provider 'cpu' has no options, found a"),
        (("--top-k", "0"), "top_k is 0"),
        (("--name", "none"), "no head 'none'"),
    ],
)
def test_wrong_options_end_before_any_output(
    run: Run, photos: Path, arguments: tuple[str, ...], message: str
) -> None:
    status, out, err = run("predict", MODEL, photos, *arguments)
    assert (status, out) == (2, "")
    assert message in err


def test_an_empty_folder_is_an_error_before_any_output(run: Run, photos: Path) -> None:
    (photos / "empty").mkdir()
    status, out, err = run("predict", MODEL, photos / "dark", photos / "empty")
    assert (status, out) == (2, "")
    assert "there are no images in the folder" in err


def test_a_folder_that_cannot_be_read_is_a_row(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def scan(path: str) -> Any:
        if os.fspath(path).endswith("bright"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    status, out, err = run("predict", MODEL, photos)
    assert status == 1
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        str(photos / name) for name in ("bright", *NAMES[2:])
    ]
    assert "2 of 3 images could not be read" in err


def test_an_old_file_stays_if_the_model_fails(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("precious")
    from headkit.export.predict.session import Session

    def fail(*_: object) -> None:
        raise headkit.ExportError("ONNX Runtime cannot run the model: late")

    monkeypatch.setattr(Session, "run", fail)
    status, _, err = run("predict", MODEL, photos, "--out", out)
    assert status == 2
    assert "late" in err
    assert out.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == ["out.csv"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_names_that_are_not_unicode_and_control_characters_are_written(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    for name in (b"a\xff.png", b"b\x1b[31m\n.png"):
        shutil.copy(IMAGES / "dark" / "0.png", photos / "bright" / os.fsdecode(name))
    (photos / "bright" / "cut.png").unlink()
    status, out, err = run("predict", MODEL, photos / "bright")
    assert status == 0, err
    assert len(out.splitlines()) == 3
    assert "\x1b" not in out
    for suffix in ("csv", "jsonl"):
        assert run("predict", MODEL, photos / "bright", "--out", tmp_path / f"o.{suffix}")[0] == 0
    assert len(table(tmp_path / "o.csv")) == 3
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert os.fsencode(rows[1]["image"]).endswith(b"a\xff.png")
    assert rows[2]["image"].endswith("b\x1b[31m\n.png")


def test_predict_imports_nothing_heavy(tmp_path: Path, photos: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'timm', 'onnx', 'safetensors', 'pandas'): sys.modules[name] = None\n"
        "from headkit.__main__ import main; main()"
    )
    arguments = ["predict", str(MODEL), str(photos), "--out", str(tmp_path / "out.csv")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "2 of 4 images" in done.stderr) == (1, True), done.stderr
    assert len(table(tmp_path / "out.csv")) == 4
