"""Classes are changed, and heads compared, from the command line and on images."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform

import headkit
from tests.backbones import SMALL, random_backbone
from tests.heads import level_head, random_head

Run = Callable[..., tuple[int, str, str]]
NAMES = ("bright", "dark", "striped")


@pytest.fixture(scope="module")
def folder(shapes: Path, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two random heads, ``a`` and ``b``, and the weights of their backbone."""
    folder = tmp_path_factory.mktemp("heads")
    shutil.copy(small_weights, folder / "small.safetensors")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = headkit.adapt(headkit.load_backbone(SMALL, small_weights), 3)
        headkit.save_head(model, folder / f"{name}.safetensors", NAMES)
    return folder


def _logits(folder: Path, name: str, shapes: Path) -> Any:
    head = headkit.Head.load(folder / f"{name}.safetensors")
    model = headkit.attach(random_backbone(), head)
    transform = create_transform(**head.pretrained_cfg, is_training=False)
    paths = [path for label in NAMES for path in sorted((shapes / label).iterdir())]
    with torch.no_grad():
        return model(torch.stack([transform(Image.open(p).convert("RGB")) for p in paths])).numpy()


def test_agreement_is_that_of_plain_timm(folder: Path, shapes: Path, run: Run) -> None:
    one, two = (_logits(folder, name, shapes).argmax(1) for name in "ab")
    arguments = ("--data", shapes, "--weights", folder / "small.safetensors", "--workers", 0)
    paths = (folder / "a.safetensors", folder / "b.safetensors")
    status, printed, err = run("heads", "diff", *paths, *arguments, "--json")
    assert status == 0, err
    found = json.loads(printed)["agreement"]
    assert found["num_images"] == len(one) == 24
    assert found["agreement"] == pytest.approx((one == two).mean(), abs=1e-6)
    pairs = {(row["a"], row["b"]): row["count"] for row in found["changes"]}
    assert sum(pairs.values()) == (one != two).sum()
    for (a, b), count in pairs.items():
        assert count == ((one == NAMES.index(a)) & (two == NAMES.index(b))).sum()
    assert (
        f"predictions on 24 images: agreement {found['agreement']:.4f}"
        in (run("heads", "diff", *paths, *arguments)[1])
    )


def test_head_without_a_class_is_compared_on_the_images_of_all(folder: Path, shapes: Path) -> None:
    path = folder / "a.safetensors"
    part = headkit.Head.load(path).drop(["striped"])
    found = headkit.diff_heads(
        path, part, shapes, weights=folder / "small.safetensors", workers=0, cache=False
    )
    logits = _logits(folder, "a", shapes)
    expected = (logits.argmax(1) == logits[:, :2].argmax(1)).mean()
    assert found.agreement["agreement"] == pytest.approx(expected, abs=1e-6)
    assert found.removed == ("striped",)
    assert found.weights == {}


def test_renamed_classes_are_no_changed_predictions(
    folder: Path, shapes: Path, run: Run, tmp_path: Path
) -> None:
    path = folder / "a.safetensors"
    new = {"bright": "light", "dark": "striped", "striped": "dark"}
    renamed = headkit.Head.load(path).rename(new).save(tmp_path / "renamed.safetensors")
    arguments = ("--data", shapes, "--weights", folder / "small.safetensors", "--workers", 0)
    assert run("heads", "diff", path, renamed, *arguments)[1].splitlines() == [
        "labels renamed: 3 (bright -> light, dark -> striped, striped -> dark)",
        "nothing else differs",
        "predictions on 24 images: agreement 1.0000",
    ]
    other = headkit.Head.load(folder / "b.safetensors").rename({"bright": "light"})
    found = headkit.diff_heads(
        path, other, shapes, weights=folder / "small.safetensors", workers=0, cache=False
    )
    one, two = (_logits(folder, name, shapes).argmax(1) for name in "ab")
    expected = ((one == two) & (one > 0)).mean()  # another class is called bright
    assert found.agreement["agreement"] == pytest.approx(expected, abs=1e-6)


def test_head_over_levels_and_ordinary_head_say_what_only_one_of_them_has(
    run: Run, tmp_path: Path
) -> None:
    paths = [
        head.save(tmp_path / f"{name}.safetensors")
        for name, head in (("levels", level_head()), ("ordinary", random_head()))
    ]
    printed = run("heads", "diff", *paths)[1]
    assert "levels removed: layer1, blocks.2\n" in printed
    assert "levels added" not in printed
    assert "another shape" not in printed
    for name in ("weight", "bias"):
        assert f"level_head.{name}: only A has it\n" in printed
        assert f"fc.{name}: only B has it\n" in printed


def test_multilabel_and_regression_heads_are_compared(
    folder: Path, shapes: Path, small_weights: Path
) -> None:
    lines = ["path,label"]
    lines += [f"{p.relative_to(shapes)},{p.parent.name}" for p in sorted(shapes.rglob("*.png"))]
    listing = shapes / "labels.csv"
    listing.write_text("\n".join(lines) + "\n")
    heads = [
        headkit.Head.load(folder / f"{name}.safetensors").with_changes(
            task="multilabel", thresholds=thresholds, temperature=2.0
        )
        for name, thresholds in (("a", (0.4, 0.5, 0.6)), ("b", None))
    ]
    options: dict[str, Any] = {"weights": small_weights, "workers": 0, "cache": False}
    found = headkit.diff_heads(heads[0], heads[1], listing, **options)
    scores = [1 / (1 + np.exp(-_logits(folder, name, shapes) / 2)) for name in "ab"]
    same = (scores[0] >= np.array([0.4, 0.5, 0.6])) == (scores[1] >= 0.5)
    assert found.agreement["agreement"] == pytest.approx(same.mean(), abs=1e-6)
    assert found.values["thresholds"] == ((0.4, 0.5, 0.6), None)
    numbers = [f"{line.rpartition(',')[0]},1,2,3" for line in lines[1:]]
    listing.write_text("\n".join(["path,bright,dark,striped", *numbers]) + "\n")
    heads = [head.with_changes(task="regression", thresholds=None) for head in heads]
    found = headkit.diff_heads(heads[0], heads[1].drop(["dark"]), listing, **options)
    difference = np.abs(_logits(folder, "a", shapes) - _logits(folder, "b", shapes))[:, [0, 2]]
    assert found.agreement["mean_difference"] == pytest.approx(difference.mean(), abs=1e-5)
    listing.unlink()


def test_heads_that_cannot_be_compared_on_images_say_why() -> None:
    with pytest.raises(ValueError, match="the tasks of the heads are multiclass and regression"):
        headkit.diff_heads(random_head(), random_head(task="regression"), "x")
    with pytest.raises(ValueError, match="no common label"):
        headkit.diff_heads(random_head(), level_head(label_names=("a", "b", "c")), "x")


def test_commands_change_the_classes_of_a_file(run: Run, tmp_path: Path) -> None:
    head = random_head(label_names=("a=b", "dog", "fox"))
    path = head.save(tmp_path / "head.safetensors")
    out = tmp_path / "new.safetensors"
    assert run("heads", "select", path, "fox", "a=b", "--out", out)[1].strip() == (
        f"{out}: 2 classes: fox, a=b"
    )
    assert headkit.Head.load(out) == head.select(["fox", "a=b"])
    status, printed, _ = run("heads", "drop", path, "dog", "--out", out, "--json")
    assert (status, json.loads(printed)["label_names"]) == (0, ["a=b", "fox"])
    assert run("heads", "rename", path, "a=b=cat", "dog=a=b", "--out", out)[0] == 0
    assert headkit.Head.load(out).label_names == ("cat", "a=b", "fox")
    printed = run("heads", "diff", path, out)[1]
    assert printed == "labels renamed: 2 (a=b -> cat, dog -> a=b)\nnothing else differs\n"
    assert run("heads", "diff", path, path)[1] == "no difference\n"
    before = out.read_bytes()
    for arguments, message in (
        (("select", path, "cow", "--out", out), "has no label 'cow', expected some of its 3"),
        (("rename", path, "cow", "--out", out), "'cow' has no '=', expected OLD=NEW"),
        (("select", path, "dog", "fox", "--out", tmp_path / "x.onnx"), ".safetensors"),
    ):
        status, _, err = run("heads", *arguments)
        assert status == 2
        assert message in err
    assert out.read_bytes() == before


def test_head_file_is_replaced_only_on_request(run: Run, tmp_path: Path) -> None:
    head = random_head(label_names=("cat", "dog", "fox"))
    path = head.save(tmp_path / "head.safetensors")
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    before = path.read_bytes()
    changes = (("select", "fox", "cat"), ("drop", "dog"), ("rename", "dog=wolf"))
    for command, *labels in changes:
        for one, other in ((path, path), (link, path), (path, link)):
            status, _, err = run("heads", command, one, *labels, "--out", other)
            assert status == 2
            assert "it is the head file itself; choose another path, or pass --overwrite" in err
    assert path.read_bytes() == before
    for command, *labels in changes:
        head.save(path)
        assert run("heads", command, path, *labels, "--out", path, "--overwrite")[0] == 0
        assert path.read_bytes() != before
    assert headkit.Head.load(path).label_names == ("cat", "wolf", "fox")


def test_checkpoint_is_not_replaced_by_its_head(run: Run, tmp_path: Path) -> None:
    model = random_backbone(num_classes=3)
    path = tmp_path / "checkpoint.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    before = path.read_bytes()
    status, _, err = run("heads", "extract", path, "--backbone", SMALL, "--out", path)
    assert status == 2
    assert "it is also an input; choose another path" in err
    assert path.read_bytes() == before


def test_new_names_are_distinct_and_not_empty(run: Run, tmp_path: Path) -> None:
    head = random_head(label_names=("cat", "dog", "fox"))
    path, out = head.save(tmp_path / "head.safetensors"), tmp_path / "new.safetensors"
    for names, message in (
        (("cat=",), "the new name of 'cat' is '', expected text that is not empty"),
        (("cat= ",), "the new name of 'cat' is ' ', expected text that is not empty"),
        (("cat=a", "cat=b"), "'cat' gets the names 'a' and 'b', expected one new name"),
    ):
        status, _, err = run("heads", "rename", path, *names, "--out", out)
        assert status == 2
        assert message in err
    assert not out.exists()
    with pytest.raises(ValueError, match="the new name of 'cat' is '', expected text"):
        head.rename({"cat": ""})


def test_changing_and_comparing_heads_needs_no_torch(tmp_path: Path) -> None:
    level_head().save(tmp_path / "head.safetensors")
    code = """
import sys
sys.modules["torch"] = sys.modules["timm"] = None
import headkit
head = headkit.Head.load(sys.argv[1])
part = head.select(["class 2", "class 0"]).rename({"class 0": "x"})
print(headkit.diff_heads(sys.argv[1], part).renamed, len(headkit.info(sys.argv[1])["levels"]))
"""
    arguments = [sys.executable, "-c", code, str(tmp_path / "head.safetensors")]
    result = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert result.stdout == "{'class 0': 'x'} 3\n"
