import pytest
import timm
from headkit.registry import catalogue

import headkit


def test_data_are_those_of_the_installed_timm() -> None:
    """With a newer timm this fails: `python -m headkit.registry.catalogue` writes the data anew."""
    assert catalogue.timm_version() == timm.__version__
    assert [row.name for row in headkit.models()] == sorted(timm.list_models())


def test_search_by_substring_glob_and_family() -> None:
    assert [r.name for r in headkit.models("resnet50")] == sorted(timm.list_models("*resnet50*"))
    assert [r.name for r in headkit.models("resnet*d")] == sorted(timm.list_models("resnet*d"))
    assert {r.family for r in headkit.models(family="levit")} == {"levit"}
    assert headkit.models("no such name") == []


def test_one_architecture_with_its_tags() -> None:
    row = catalogue.architecture("resnet50.a1_in1k")
    assert row.family == "resnet"
    assert row.tags[0] == timm.get_pretrained_cfg("resnet50").tag
    assert set(row.tags) == {n.partition(".")[2] for n in timm.list_pretrained("resnet50.*")}
    assert row.input_size == (3, 224, 224)
    with pytest.raises(headkit.UnknownArchitecture, match="resnet50"):
        catalogue.architecture("resnett50")
