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
    assert renamed == HeadDifference(renamed={"class 0": "x"})


def test_renamed_classes_are_matched_by_their_weights() -> None:
    head = random_head(4)
    swapped = find_differences(head, head.rename({"class 0": "class 1", "class 1": "class 0"}))
    assert swapped == HeadDifference(renamed={"class 0": "class 1", "class 1": "class 0"})
    part = head.select(["class 3", "class 1", "class 0"]).rename({"class 3": "x"})
    found = find_differences(head, part)
    assert found == HeadDifference(removed=("class 2",), renamed={"class 3": "x"}, reordered=True)
    unnamed = find_differences(head.with_changes(label_names=None), head)
    assert unnamed == HeadDifference(renamed={str(row): f"class {row}" for row in range(4)})
    weight = np.array(head.tensors["fc.weight"])
    weight[0] += 0.5
    other = head.with_changes(tensors={**head.tensors, "fc.weight": weight})
    found = find_differences(head, other.rename({"class 0": "x", "class 1": "y"}))
    assert (found.removed, found.added) == (("class 0",), ("x",))
    assert found.renamed == {"class 1": "y"}
    assert found.weights == {}
    kept = find_differences(head, other.rename({"class 1": "y"}))
    assert (kept.renamed, list(kept.weights)) == ({"class 1": "y"}, ["fc.weight"])
    assert abs((kept.weights["fc.weight"] or 0) - 0.5) <= 1e-6


def test_classes_with_equal_weights_are_matched_by_name_first() -> None:
    head = random_head(3)
    zeros = {name: np.zeros_like(tensor) for name, tensor in head.tensors.items()}
    untrained = head.with_changes(tensors=zeros)
    turned = untrained.select(["class 2", "class 0", "class 1"])
    assert find_differences(untrained, turned) == HeadDifference(reordered=True)


def test_levels_and_other_tensors_differ() -> None:
    found = find_differences(random_head(), level_head())
    assert found.levels == {"removed": [], "added": ["layer1", "blocks.2"]}
    assert found.tensors == {
        "removed": ["fc.bias", "fc.weight"],
        "added": ["level_head.bias", "level_head.weight"],
    }
    assert found.weights == {}
    assert found.max_weight is None
    assert found.values["kind"] == ("own", "linear")
