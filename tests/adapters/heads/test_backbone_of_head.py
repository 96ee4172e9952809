"""What a head file says about its backbone is shown; only timm's own weights are fetched for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import headkit
from headkit.adapters.heads.backbone_of_head import check_arguments
from tests.backbones import random_backbone
from tests.checkpoints import save, trained


def head_from(source: str, **changes: Any) -> headkit.Head:
    head = headkit.head_of(headkit.adapt(random_backbone(), 3))
    return head.with_changes(backbone=replace(head.backbone, source=source), **changes)


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record every download that is asked for, and refuse it."""
    asked: list[str] = []

    def refuse(*args: str, **kwargs: str) -> str:
        asked.append(args[0] if args else kwargs["repo_id"])
        raise OSError("no network")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    monkeypatch.setattr("timm.models._hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    return asked


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("file:w.safetensors", r"the file w\.safetensors.*--weights FILE"),
        ("file:/etc/passwd", r"the file /etc/passwd.*--weights FILE"),
        ("folder:mine", r"the folder mine.*--backbone local-dir:FOLDER"),
        ("hub:someone/net", r"someone/net on the Hub.*--backbone hf-hub:someone/net"),
        ("hub:timm/other_net.in1k", r"timm/other_net.in1k on the Hub"),
        ("hub:http://example.org/x.pth", r"example\.org.*--weights FILE"),
        ("random", r"source is 'random'.*--weights FILE"),
        ("unknown", r"source is 'unknown'.*--weights FILE"),
        ("", r"source is ''.*--weights FILE"),
    ],
)
def test_source_is_shown_and_not_fetched(
    source: str, advice: str, nothing_is_fetched: list[str]
) -> None:
    with pytest.raises(headkit.WeightsError, match=advice):
        headkit.load_backbone_of(head_from(source))
    assert not nothing_is_fetched


def test_file_beside_the_head_is_named_but_not_read(tmp_path: Path) -> None:
    state = trained(num_classes=1000).state_dict()
    path = save(state, tmp_path / "w.safetensors")
    head = head_from("file:w.safetensors")
    with pytest.raises(headkit.WeightsError, match=r"w\.safetensors may be that file"):
        headkit.load_backbone_of(head, folder=tmp_path)
    assert headkit.load_backbone_of(head, path)


def test_weights_of_timm_itself_are_fetched_under_timms_name(
    nothing_is_fetched: list[str],
) -> None:
    model: Any = random_backbone()
    cfg = model.pretrained_cfg
    head = head_from(f"hub:{cfg['hf_hub_id']}")
    assert cfg["hf_hub_id"].startswith("timm/test_resnet")
    with pytest.raises(headkit.WeightsError, match="no network"):
        headkit.load_backbone_of(head)
    assert set(nothing_is_fetched) == {cfg["hf_hub_id"]}


@pytest.mark.parametrize(
    "architecture", ["local-dir:/tmp", "hf-hub:someone/net", "no_such_net", "../x", ""]
)
def test_architecture_of_a_head_is_only_a_name_of_timm(
    architecture: str, nothing_is_fetched: list[str]
) -> None:
    for weights in (None, "some.pth"):
        with pytest.raises((headkit.UnknownArchitecture, headkit.HeadFormatError)):
            headkit.load_backbone_of(head_from("hub:x/y", architecture=architecture), weights)
    assert not nothing_is_fetched


@pytest.mark.parametrize(
    "arguments",
    [
        {"checkpoint_path": "/etc/passwd"},
        {"cache_dir": "/etc/somewhere"},
        {"pretrained_cfg": {"url": "http://example.org/x.pth"}},
        {"pretrained_cfg_overlay": {"file": "/etc/passwd"}},
        {"pretrained_model_args": {"img_size": 3}},
        {"features_only": True},
        {"scriptable": True},
        {"pretrained": True},
        {"pruned": True},
        {"no_such_argument": 1},
        {"__class__": 1},
        {"act_layer": "../../x"},
        {"global_pool": {"a": 1}},
        {"channels": [[[{"a": 1}]]]},
        {"stem_width": "x" * 100},
    ],
)
def test_arguments_of_a_head_that_do_not_build_the_architecture_are_refused(
    arguments: dict[str, Any], nothing_is_fetched: list[str], tmp_path: Path
) -> None:
    path = save(trained().state_dict(), tmp_path / "w.pth")
    with pytest.raises(headkit.HeadFormatError, match=next(iter(arguments))):
        headkit.load_backbone_of(head_from("file:w.pth", model_args=arguments), path)
    assert not nothing_is_fetched


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("test_resnet", {"in_chans": 1, "global_pool": "max", "channels": [4, 4, 8, 8]}),
        ("test_resnet", {"drop_rate": 0.1, "act_layer": "silu", "output_stride": 16}),
        ("test_vit", {"img_size": [96, 192], "dynamic_img_size": True, "class_token": False}),
        ("deit_tiny_distilled_patch16_224", {"embed_dim": 8, "depth": 1, "num_heads": 2}),
        ("crossvit_9_240", {"embed_dim": [8, 16], "depth": [[1, 1, 0]], "num_heads": [2, 2]}),
        ("test_byobnet", {"img_size": 64}),
        ("test_efficientnet", {"channel_multiplier": 0.5}),
        ("levit_128s", {"depth": [1, 1, 1], "key_dim": 4}),
    ],
)
def test_arguments_that_build_an_architecture_pass(
    architecture: str, arguments: dict[str, Any]
) -> None:
    head = head_from("random", architecture=architecture, model_args=arguments)
    assert check_arguments(head) == arguments


def test_tag_that_timm_does_not_know_needs_no_lookup(tmp_path: Path) -> None:
    path = save(trained().state_dict(), tmp_path / "w.pth")
    head = headkit.head_of(headkit.load_backbone("test_resnet", path))
    head = head.with_changes(backbone=replace(head.backbone, tag="mine"))
    assert headkit.attach(headkit.load_backbone_of(head, path), head)
