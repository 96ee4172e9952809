import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import timm

import headkit
from headkit.benchmarks.coverage import record
from headkit.benchmarks.studies.catalogue import RECORD, render, write
from headkit.registry import catalogue

Run = Callable[..., tuple[int, str, str]]


def test_data_match_the_installed_timm_and_the_committed_record() -> None:
    """With a newer timm this fails: CONTRIBUTING says how to generate the data again."""
    assert catalogue.timm_version() == timm.__version__
    assert [row.name for row in headkit.models()] == sorted(timm.list_models())
    committed = (Path(catalogue.__file__).parent / catalogue.FILE).read_text(encoding="utf-8")
    assert render(record.load(RECORD)) == committed


def test_search_by_substring_glob_and_family() -> None:
    exact, *others = [r.name for r in headkit.models("resnet50")]
    assert exact == "resnet50"
    assert others == sorted(set(timm.list_models("*resnet50*")) - {"resnet50"})
    assert [r.name for r in headkit.models("resnet*d")] == sorted(timm.list_models("resnet*d"))
    assert {r.family for r in headkit.models(family="levit")} == {"levit"}
    assert headkit.models("no such name") == []


def test_search_by_tag_returns_the_tags_that_match() -> None:
    found = headkit.models("resnet50.a1*")
    assert [row.full_names() for row in found] == [["resnet50.a1_in1k", "resnet50.a1h_in1k"]]
    assert {n for row in headkit.models("ft_in22k") for n in row.full_names()} == set(
        timm.list_pretrained("*ft_in22k*")
    )


def test_filters_agree_with_timm() -> None:
    small = headkit.models(max_params=3_000_000, input_size=224, pretrained=True)
    assert small
    for row in small[:5]:
        model = timm.create_model(row.name, num_classes=0, device="meta")
        count = sum(p.numel() for p in model.parameters())
        assert row.parameters == count <= 3_000_000
        assert timm.get_pretrained_cfg(row.name).input_size == (3, 224, 224)
        assert row.num_features == model.num_features
    assert {row.num_features for row in headkit.models(features=384)} == {384}
    apache = headkit.models("resnet50*", license="apache*")
    assert {tag.license for row in apache for tag in row.tags} == {"apache-2.0"}
    assert all(row.exportable for row in headkit.models(exportable=True))


@pytest.mark.parametrize("sort", catalogue.SORTS)
def test_exact_name_comes_first_in_any_order(sort: str, run: Run) -> None:
    for pattern in ("resnet18", "resnet18.a1_in1k", "vit_base_patch16_224"):
        first, *others = headkit.models(pattern, sort=sort)
        assert first.name == pattern.partition(".")[0]
        assert first.name not in [row.name for row in others]
    status, out, _ = run("models", "resnet18", "--sort", sort, "--names")
    assert status == 0
    assert out.splitlines()[0] == "resnet18"
    assert headkit.models("resnet18*", sort=sort) == sorted(
        headkit.models("resnet18*", sort=sort), key=catalogue._ORDER[sort]
    )


@pytest.mark.parametrize(
    ("sort", "key", "sign"),
    [
        ("latency", "latency_ms", 1),
        ("params", "parameters", 1),
        ("gmacs", "gmacs", 1),
        ("accuracy", "top1", -1),
    ],
)
def test_sorting_puts_missing_values_last(sort: str, key: str, sign: int) -> None:
    values = [getattr(row, key) for row in headkit.models("resnet", sort=sort)]
    measured = [value for value in values if value is not None]
    assert measured == sorted(measured, key=lambda value: sign * value)
    assert values == [*measured, *[None] * (len(values) - len(measured))]
    with pytest.raises(ValueError, match="expected one of name, latency"):
        headkit.models(sort="size")


def test_one_architecture_with_its_tags() -> None:
    row = catalogue.architecture("resnet50")
    assert row.family == "resnet"
    assert row.tags[0].name == timm.get_pretrained_cfg("resnet50").tag
    assert row.full_names()[1:] == sorted(
        set(timm.list_pretrained("resnet50.*")) - {row.full_names()[0]}
    )
    assert row.input_size == (3, 224, 224)
    assert [tag.name for tag in catalogue.architecture("resnet50.a1_in1k").tags] == ["a1_in1k"]
    with pytest.raises(headkit.UnknownArchitecture, match="resnet50"):
        catalogue.architecture("resnett50")
    with pytest.raises(headkit.UnknownArchitecture, match=r"no pretrained tag 'a1_in2k'.*a1_in1k"):
        catalogue.architecture("resnet50.a1_in2k")


def test_licences_are_those_of_timm() -> None:
    for row in headkit.models("eva02")[:4]:
        for name, tag in zip(row.full_names(), row.tags, strict=True):
            assert tag.license == (timm.get_pretrained_cfg(name).license or "unknown")


def test_names_come_from_another_installed_timm(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(catalogue, "version", lambda _: "99.0")
    known = timm.list_models("resnet1*")
    monkeypatch.setattr(timm, "list_models", lambda *_: [*known, "tresnet_m"])
    rows = {row.name: row for row in headkit.models("resnet18")}
    catalogue._known.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="headkit"):
            found = {row.name: row for row in headkit.models()}
    finally:
        catalogue._known.cache_clear()
    assert sorted(found) == sorted([*known, "tresnet_m"])
    assert found["resnet18"] == rows["resnet18"]
    assert "timm 99.0 is installed" in caplog.text


def test_the_command_line_searches(run: Run) -> None:
    status, out, _ = run("models", "resnet50*", "--license", "apache*", "--sort", "accuracy")
    header, first, *_ = out.splitlines()
    assert (status, header.split()[0]) == (0, "architecture")
    best = headkit.models("resnet50*", license="apache*", sort="accuracy")[0]
    assert first.split()[0] == best.name
    status, out, _ = run("models", "resnet50", "--max-params", "24M", "--names")
    assert "resnet50" in out.split()
    status, out, _ = run("models", "resnet50", "--json")
    assert json.loads(out)[0]["name"]
    assert run("models", "resnt50")[::2] == (
        1,
        "no architecture matches; nearest names: resnet50, resnet50t, resnet50s\n",
    )
    assert run("models", "--max-params", "many")[0] == 2
    status, out, _ = run("info", "resnet50.a1_in1k")
    assert "tags.a1_in1k.top1: 80." in out


def test_the_catalogue_is_written_from_a_record(tmp_path: Path) -> None:
    path, out = tmp_path / "record.jsonl", tmp_path / "architectures.json"
    record.save(path, record.load(RECORD))
    write(record.load(path), out)
    committed = (Path(catalogue.__file__).parent / catalogue.FILE).read_text(encoding="utf-8")
    assert out.read_text(encoding="utf-8") == committed
