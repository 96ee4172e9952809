"""Display of heads, predictors and stores, and equality of heads."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headkit
from headkit.adapters.heads.head import Head
from tests.heads import random_head

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0_1_0"


class _Cells(HTMLParser):
    """Collect the tags and the texts of a table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_head_is_one_informative_line() -> None:
    head = random_head(4, metrics={"accuracy": 0.975}, kind="linear", created="2026-01-01")
    assert repr(head) == (
        "Head(architecture=resnet50, kind=linear, task=multiclass, "
        "classes=4 (class 0, class 1, class 2, …), bytes=96, accuracy=0.975)"
    )
    assert "classes=3," in repr(random_head(label_names=None))
    assert "accuracy" not in repr(random_head())


def test_text_of_a_head_cannot_leave_its_line_or_its_cell() -> None:
    names = ("a\nb\x1b[31m", "<script>alert(1)</script>", "x" * 1000)
    head = random_head(label_names=names)
    object.__setattr__(head, "architecture", "<b>\r\u202e")  # no file can hold this
    assert repr(head).isprintable()
    assert len(repr(head)) < 300
    table = _Cells(head._repr_html_())
    assert set(table.tags) == {"table", "caption", "tbody", "tr", "th", "td"}
    assert "3 (a\\nb\\x1b[31m, <script>alert(1)</scrip…, " in "".join(table.texts)
    assert "\\u202e" in "".join(table.texts)


def test_predictor_is_one_informative_line() -> None:
    merged = headkit.Predictor(FIXTURES / "models" / "resnet_merged.onnx", threads=1)
    assert repr(merged) == (
        "Predictor(architecture=test_resnet, form=merged, precision=fp32, provider=cpu, "
        "classes=3 (bright, dark, striped))"
    )
    multi = headkit.Predictor(FIXTURES / "models" / "resnet_multi.onnx", threads=1)
    assert "form=multi" in repr(multi)
    assert "heads=4 (own, linear, mlp, …)" in repr(multi)
    assert "heads=0" in repr(headkit.Predictor(FIXTURES / "models/resnet_backbone.onnx", threads=1))
    assert "provider" in _Cells(merged._repr_html_()).texts
    assert merged == merged
    assert len({merged, multi}) == 2


def test_store_is_one_line_with_its_url(tmp_path: Path) -> None:
    store = headkit.HeadStore(tmp_path / "<store>")
    assert repr(store) == f"HeadStore(url={store.url})"
    assert _Cells(store._repr_html_()).texts == ["HeadStore", "url", store.url]
    assert not (tmp_path / "<store>").exists()


def test_heads_of_equal_content_are_equal(tmp_path: Path) -> None:
    head = random_head(created="2026-01-01", model_args={"img_size": (224, 224)})
    again = random_head(created="2026-01-01", model_args={"img_size": [224, 224]})
    loaded = Head.load(head.save(tmp_path / "head.safetensors"))
    assert head == again == loaded
    assert hash(head) == hash(again) == hash(loaded)
    assert len({head, again, loaded}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"label_names": ("a", "b", "c")},
        {"label_names": None},
        {"temperature": 2.0},
        {"created": "2026-01-02"},
        {"notes": "other"},
        {"tensors": {"fc.weight": np.ones((3, 5), np.float32)}},
        {"tensors": {"fc.weight": np.ones((3, 5), np.float16)}},
        {"tensors": {"fc.weight": np.ones((3, 5, 1, 1), np.float32)}},
    ],
    ids=str,
)
def test_heads_that_differ_are_not_equal(changes: dict[str, Any]) -> None:
    weight = np.ones((3, 5), np.float32)
    weight[0, 0] += np.finfo(np.float32).eps  # one bit
    head = random_head(created="2026-01-01", tensors={"fc.weight": weight})
    other = head.with_changes(**changes)
    assert head != other
    assert hash(head) != hash(other)
    assert head not in [other, "head", None]
