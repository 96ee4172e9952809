"""What differs between two heads is found without torch."""

import numpy as np

from headkit.adapters.heads.difference import HeadDifference, find_differences
from tests.heads import level_head, random_head


def test_equal_heads_do_not_differ() -> None:
    for head in (random_head(), level_head(), random_head(label_names=None)):
        assert find_differences(head, head) == HeadDifference()
        assert HeadDifference().max_weight == 0.0


def test_difference_of_a_changed_head_is_what_was_changed() -> None:
    head = random_head(4, metrics={"accuracy": 0.5, "recall": [0.5] * 4})
    weight = np.array(head.tensors["fc.weight"])
    weight[2, 3] += 0.25
    changed = head.with_changes(
        tensors={**head.tensors, "fc.weight": weight},
        temperature=2.0,
        metrics={"accuracy": 0.75, "log_loss": 0.1},
        backbone=head.backbone.__class__("x", head.backbone.source, 5, "1" * 64),
    )
    found = find_differences(head, changed)
    assert found.values == {"temperature": (1.0, 2.0)}
    assert found.metrics == {"accuracy": (0.5, 0.75), "log_loss": (None, 0.1)}
    assert set(found.backbone) == {"tag", "parameters", "fingerprint"}
    assert set(found.weights) == {"fc.weight"}
    assert abs((found.weights["fc.weight"] or 0) - 0.25) <= 1e-6
    assert found.max_weight == found.weights["fc.weight"]


def test_classes_are_matched_by_name() -> None:
    head = random_head(4)
    turned = head.select(["class 3", "class 1", "class 0"])
    found = find_differences(head, turned)
    assert (found.added, found.removed, found.reordered) == ((), ("class 2",), True)
    assert found.weights == {}
    renamed = find_differences(head, head.rename({"class 0": "x"}))
    assert (renamed.added, renamed.removed) == (("x",), ("class 0",))
    assert renamed.weights == {}


def test_levels_and_other_tensors_differ() -> None:
    found = find_differences(random_head(), level_head())
    assert found.levels == {"removed": [], "added": ["last", "layer1", "blocks.2"]}
    assert found.weights == dict.fromkeys(
        ["fc.bias", "fc.weight", "level_head.bias", "level_head.weight"]
    )
    assert found.max_weight is None
    assert found.values["kind"] == ("own", "linear")
