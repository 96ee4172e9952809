import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from headkit import RegistryError
from headkit.registry.hub.card import build_config, render_card
from headkit.registry.hub.hub import HubPlace
from tests.heads import level_head, scored_head

from .hub_server import Hub, hub_server


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server("hf_secret") as running:
        yield running


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """Of a process that finds the server, and nothing of this user's."""
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HEADKIT_STORE": str(tmp_path / "store"),
    }


def call(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headkit", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_head_comes_back_byte_for_byte(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    path = scored_head(1).save(tmp_path / "flowers.safetensors")
    pushed = call(environment, "heads", "push", path, "hf://user/flowers")
    assert (pushed.returncode, pushed.stderr) == (0, "")
    assert (
        pushed.stdout.strip() == f"{hub.url}/user/flowers/commit/{hub.commits['user/flowers'][-1]}"
    )
    assert sorted(hub.repos["user/flowers"]) == ["README.md", "config.json", "head.safetensors"]
    assert len(hub.commits["user/flowers"]) == 2  # the empty one, and all of it
    out = tmp_path / "pulled.safetensors"
    pulled = call(environment, "heads", "pull", "hf://user/flowers", "--out", out)
    assert (pulled.returncode, pulled.stdout) == (0, f"{out}\n")
    assert out.read_bytes() == path.read_bytes()


def test_a_published_head_is_pushed_by_its_reference(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    path = scored_head(1).save(tmp_path / "1.safetensors")
    assert call(environment, "heads", "publish", path, "--name", "flowers").returncode == 0
    assert call(environment, "heads", "push", "flowers@1", "hf://user/repo").returncode == 0
    assert hub.repos["user/repo"]["head.safetensors"] == path.read_bytes()


def test_a_repository_holds_many_heads_and_one_card(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    paths = {}
    for seed, name in enumerate(("flowers", "roses"), 1):
        paths[name] = scored_head(seed).save(tmp_path / f"{name}.safetensors")
        url = f"hf://user/many/{name}"
        assert call(environment, "heads", "push", paths[name], url).returncode == 0
    files = hub.repos["user/many"]
    assert sorted(files) == [
        "README.md",
        *(f"{name}/{file}" for name in paths for file in ("config.json", "head.safetensors")),
    ]
    card = files["README.md"].decode()
    assert "## flowers" in card
    assert "## roses" in card
    for name, path in paths.items():
        pulled = call(environment, "heads", "pull", f"hf://user/many/{name}")
        assert Path(pulled.stdout.strip()).read_bytes() == path.read_bytes()


def test_simultaneous_pushes_lose_nothing(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    path = scored_head(1).save(tmp_path / "1.safetensors")
    assert call(environment, "heads", "push", path, "hf://user/many/zero").returncode == 0
    pushes = []
    for name in ("one", "two", "three", "four"):
        push = ["heads", "push", str(path), f"hf://user/many/{name}"]
        command = [sys.executable, "-m", "headkit", *push]
        pushes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    assert [one.wait() for one in pushes] == [0] * 4
    files = hub.repos["user/many"]
    for name in ("zero", "one", "two", "three", "four"):
        assert files[f"{name}/head.safetensors"] == path.read_bytes()
        assert f"## {name}\n" in files["README.md"].decode()
    assert len(hub.commits["user/many"]) == 6
    assert sum("/commit/" in request for request in hub.requests) >= 5


def test_a_commit_made_during_a_push_is_kept(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    path = scored_head(1).save(tmp_path / "1.safetensors")
    hub.meanwhile = {"two/config.json": json.dumps(build_config(scored_head(2))).encode()}
    assert call(environment, "heads", "push", path, "hf://user/many/one").returncode == 0
    card = hub.repos["user/many"]["README.md"].decode()
    assert "## one\n" in card
    assert "## two\n" in card
    assert sum("/commit/" in request for request in hub.requests) == 2


def test_a_readme_of_someones_own_stays(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    path = scored_head(1).save(tmp_path / "1.safetensors")
    hub.repos["user/flowers"], hub.commits["user/flowers"] = {"README.md": b"mine"}, ["2" * 40]
    ended = call(environment, "heads", "push", path, "hf://user/flowers")
    assert (ended.returncode, "did not update README.md" in ended.stderr) == (0, True)
    assert hub.repos["user/flowers"]["README.md"] == b"mine"
    assert hub.repos["user/flowers"]["head.safetensors"] == path.read_bytes()


def test_the_configuration_loads_with_timm(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    path = scored_head(1).save(tmp_path / "1.safetensors")
    assert call(environment, "heads", "push", path, "hf://user/flowers").returncode == 0
    program = (
        "import json; from timm.models import load_model_config_from_hf\n"
        "print(json.dumps(load_model_config_from_hf('user/flowers')))"
    )
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    cfg, architecture, arguments = json.loads(found.stdout)
    assert (architecture, arguments) == ("resnet18", {})
    assert (cfg["num_classes"], cfg["label_names"]) == (2, ["no", "yes"])
    assert cfg["input_size"] == [3, 8, 8]


def test_the_card_says_what_the_head_is(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    path = scored_head(1, notes="of spring").save(tmp_path / "1.safetensors")
    assert call(environment, "heads", "push", path, "hf://user/flowers").returncode == 0
    card = ModelCard(hub.repos["user/flowers"]["README.md"].decode())
    assert {k: v for k, v in vars(card.data).items() if v is not None} == {
        "pipeline_tag": "image-classification",
        "library_name": "headkit",
        "tags": ["image-classification", "timm", "headkit"],
        "license": "apache-2.0",
        "base_model": ["timm/resnet18.a1_in1k"],
    }
    for part in ("2 classes: no, yes", "accuracy: 0.5100", "of spring", "reset_classifier(2)"):
        assert part in card.text


def test_the_card_names_the_levels_that_a_head_reads() -> None:
    card = render_card("user/flowers", {"": build_config(level_head())})
    assert "- levels that the head reads: last, layer1, blocks.2\n" in card
    assert "levels that" not in render_card("user/flowers", {"": build_config(scored_head())})


def test_refusals_of_the_hub_are_reported_in_one_line(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    path = scored_head(1).save(tmp_path / "1.safetensors")
    for arguments, message in (
        (("pull", "hf://user/none"), "there is no such repository"),
        (("pull", "hf://user"), "expected hf://user/repo"),
        (("push", path, "hf://user/repo/../x"), "expected hf://user/repo"),
        (("push", path, "hf://user/repo/Upper"), "is not a valid head name"),
    ):
        ended = call(environment, "heads", *arguments)
        assert ended.returncode == 2, ended.stderr
        assert message in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
    environment["HF_TOKEN"] = "hf_wrong"  # noqa: S105 - of the server above
    ended = call(environment, "heads", "push", path, "hf://user/repo")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    hub.repos["user/empty"], hub.commits["user/empty"] = {}, ["0" * 40]
    ended = call(environment, "heads", "pull", "hf://user/empty")
    assert "has no head.safetensors" in ended.stderr


def test_a_file_on_the_hub_is_not_trusted(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    hub.repos["user/bad"] = {"head.safetensors": b"\x80\x04pickled"}
    hub.commits["user/bad"] = ["1" * 40]
    ended = call(environment, "heads", "pull", "hf://user/bad", "--out", tmp_path / "x.safetensors")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert not (tmp_path / "x.safetensors").exists()


def test_places_on_the_hub() -> None:
    assert HubPlace.parse("hf://a/b") == HubPlace("a/b")
    assert HubPlace.parse("hf://a/b@v1/c") == HubPlace("a/b", "c", "v1")
    for url in ("a/b", "hf://a", "hf://a/b/c/d", "hf://a b/c", "hf://a/b/.."):
        with pytest.raises(RegistryError):
            HubPlace.parse(url)


def test_configuration_keeps_values_unknown_to_timm_separate() -> None:
    config = build_config(scored_head(1))
    assert config["headkit"]["backbone"]["fingerprint"] == "0" * 64
    assert config["label_names"] == ["no", "yes"]


def test_the_card_shows_numbers_with_their_interval_and_no_lists() -> None:
    metrics = {
        "accuracy": 0.686,
        "accuracy_interval": [0.6132, 0.751],
        "recall": [0.5, 0.9],
        "num_val": 172,
        "validation": "held_out",
        "fewest_images": [[0, 6]],
        "skipped": {"format .heic": 48},
    }
    card = render_card("user/flowers", {"": build_config(scored_head(metrics=metrics))})
    assert "- accuracy: 0.6860 (95 % interval 0.6132 to 0.7510)\n- num val: 172\n" in card
    assert not any(word in card for word in ("fewest", "skipped", "recall", "held_out"))
