"""Labels, notes and sources that change the model card of a head.

At 64f666f, a newline in ``source`` added keys to the YAML of the card, and HTML and Markdown in
labels and notes stayed what they were. Now each text is escaped for its place, and a source or an
architecture of several lines is refused.
"""

import re

import pytest

from headkit import HeadFormatError
from headkit.adapters.backbone.info import BackboneInfo
from headkit.registry.hub.card import build_config, render_card
from tests.heads import random_head

LABELS = (
    "a\n---\nlicense: mit",
    "<script>alert(1)</script>",
    "[x](http://127.0.0.1) `code` \x1b[2J",
)


def test_labels_and_notes_are_plain_text_in_a_card() -> None:
    head = random_head(
        label_names=LABELS, notes="fine\n\n# Title\n<img src=x onerror=alert(1)>\u202e"
    )
    card = render_card("user/repo", {"": build_config(head)})
    assert card.count("---\n") == 2
    assert "license: mit" not in card.partition("# repo")[0]
    assert not re.search(r"(?<!\\)<(script|img)", card)
    assert "\n# Title" not in card
    assert not re.search(r"(?<!\\)\[x\]", card)
    assert all(mark.isprintable() or mark == "\n" for mark in card)


def test_source_with_a_backtick_stays_in_its_code_span() -> None:
    info = BackboneInfo("", "hub:x` [y](z) `", 1, "0" * 64)
    card = render_card("user/repo", {"": build_config(random_head(backbone=info))})
    assert "`hub:x' [y](z) '`" in card
    assert "base_model" not in card


@pytest.mark.parametrize("source", ["hub:a/b\n- c: d", "hub:\x1b[31m"])
def test_source_of_several_lines_is_refused(source: str) -> None:
    with pytest.raises(HeadFormatError, match="source"):
        random_head(backbone=BackboneInfo("", source, 1, "0" * 64))
