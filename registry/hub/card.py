"""The files that go with a head on the Hugging Face Hub: ``config.json`` and a model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from headkit.adapters.display import escape_unprintable
from headkit.adapters.errors import UnknownArchitecture
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.summary import format_interval
from headkit.registry.catalogue import architecture

GENERATED = "<!-- Written by headkit"
"""Start of a line of every card; headkit does not overwrite a README without it."""
_GENERATED_LINE = f"{GENERATED}. The next push of a head overwrites this file. -->"
HEAD_FILE, CONFIG_FILE, CARD_FILE = "head.safetensors", "config.json", "README.md"
MAX_LABELS = 50
"""Maximum number of label names that a card shows."""


def build_config(head: Head) -> dict[str, Any]:
    """Return ``config.json`` as timm writes it for the Hub, with headkit's part in ``headkit``.

    Source of the format: ``timm.models._hub.save_config_for_hf``.
    """
    metadata = head.to_json()
    own = ("task", "kind", "temperature", "metrics", "backbone", "created", "versions", "notes")
    config: dict[str, Any] = {
        "architecture": head.architecture,
        "num_classes": head.num_classes,
        "num_features": head.num_features,
        "global_pool": head.global_pool,
    }
    if head.label_names is not None:
        config["label_names"] = list(head.label_names)
    if head.model_args:
        config["model_args"] = dict(head.model_args)
    config["pretrained_cfg"] = {**head.pretrained_cfg, "num_classes": head.num_classes}
    config["headkit"] = {key: metadata[key] for key in own}
    config["headkit"] |= {key: metadata[key] for key in ("levels", "delta") if key in metadata}
    return config


def config_text(head: Head) -> str:
    """Return the content of ``config.json``."""
    return json.dumps(build_config(head), indent=2, ensure_ascii=False) + "\n"


def render_card(repo: str, configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the model card of a repository: Markdown after a block of metadata.

    Args:
        repo: The repository, ``user/name``.
        configs: Content of each ``config.json`` by folder of the repository; the folder is empty
            for a head at the top.
    """
    ordered = dict(sorted(configs.items()))
    sections = "\n".join(_section(repo, folder, config) for folder, config in ordered.items())
    title = repo.partition("/")[2]
    if len(ordered) == 1:
        what = "A classifier head for a frozen timm backbone"
    else:
        what = f"{len(ordered)} classifier heads for frozen timm backbones"
    return (
        f"{_metadata(ordered.values())}\n{_GENERATED_LINE}\n\n# {title}\n\n{what}. This repository "
        "does not contain the backbone's weights; they come from where they were published.\n\n"
        f"{sections}"
    )


def _metadata(configs: Any) -> str:
    configs = list(configs)
    bases = sorted({base for config in configs if (base := _base_model(config))})
    licences = {licence for config in configs if (licence := _licence(config))}
    lines = ["---", "pipeline_tag: image-classification", "library_name: headkit", "tags:"]
    lines += ["- image-classification", "- timm", "- headkit"]
    if len(licences) == 1:
        lines.append(f"license: {licences.pop()}")
    if bases:
        lines += ["base_model:", *(f"- {base}" for base in bases)]
    return "\n".join([*lines, "---", ""])


def _section(repo: str, folder: str, config: Mapping[str, Any]) -> str:
    own, place = config["headkit"], f"{folder}/" if folder else ""
    backbone = own["backbone"]
    name = config["architecture"] + (f".{backbone['tag']}" if backbone["tag"] else "")
    size = "x".join(map(str, config["pretrained_cfg"]["input_size"][1:]))
    licence = _licence(config)
    lines = [f"## {folder}\n"] if folder else []
    lines += [
        f"- backbone: `{name}`{f', weights under {licence}' if licence else ''}, from "
        f"`{_code(backbone['source'])}`, fingerprint `{backbone['fingerprint'][:16]}…`",
        f"- input: {size} pixels; features: {config['num_features']}; head: {own['kind']}",
        f"- task: {own['task']}, {config['num_classes']} classes"
        f"{_labels(config.get('label_names'))}",
    ]
    names = [str(level["name"]) for level in own.get("levels", ())]
    if names:
        lines.append(f"- levels that the head reads: {', '.join(map(_plain, names))}")
    if "delta" in own:
        lines.append(
            f"- delta: changes to the backbone's weights by the method `{own['delta']['method']}`, "
            "merged when the head is attached or exported"
        )
    metrics = own["metrics"]
    lines += [
        f"- {key.replace('_', ' ')}: {_rounded(value)}"
        f"{format_interval(metrics.get(f'{key}_interval'))}"
        for key, value in metrics.items()
        if isinstance(value, int | float)
    ]
    if own["notes"]:
        lines.append(f"- notes: {_plain(own['notes'])}")
    url = f"hf://{repo}{f'/{folder}' if folder else ''}"
    lines += [
        "",
        "With headkit:",
        "",
        "```bash",
        f"headkit heads pull {url} --out head.safetensors",
        "headkit export head.safetensors --out model.onnx",
        "headkit predict model.onnx photo.jpg",
        "```",
        "",
    ]
    plain = own["kind"] == "own" and not config.get("model_args") and "delta" not in own
    if not plain or not backbone["source"].startswith("hub:"):
        return "\n".join(lines)
    lines += [
        "With timm alone:",
        "",
        "```python",
        "import timm",
        "from huggingface_hub import hf_hub_download",
        "from safetensors.torch import load_file",
        "",
        f"model = timm.create_model({json.dumps(name)}, pretrained=True)",
        f"model.reset_classifier({config['num_classes']})",
        f'head = hf_hub_download("{repo}", "{place}{HEAD_FILE}")',
        "model.load_state_dict(load_file(head), strict=False)",
        "model.eval()",
        "```",
        "",
    ]
    return "\n".join(lines)


def _labels(names: list[str] | None) -> str:
    if not names:
        return ""
    more = f", … ({len(names)})" if len(names) > MAX_LABELS else ""
    return ": " + ", ".join(map(_plain, names[:MAX_LABELS])) + more


def _plain(text: str) -> str:
    """Return a text from a head as Markdown that shows it: one line, no markup and no HTML."""
    return _MARKUP.sub(r"\\\g<0>", escape_unprintable(" ".join(text.split())))


def _code(text: str) -> str:
    """Return a text from a head for a code span."""
    return escape_unprintable(text).replace("`", "'")


_MARKUP = re.compile(r"[\\`*_{}\[\]<>#|!~$&]")
_REPOSITORY = re.compile(r"[\w.-]{1,100}/[\w.-]{1,100}", re.ASCII)


def _rounded(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _base_model(config: Mapping[str, Any]) -> str:
    kind, _, place = str(config["headkit"]["backbone"]["source"]).partition(":")
    return place if kind == "hub" and _REPOSITORY.fullmatch(place) else ""


def _licence(config: Mapping[str, Any]) -> str:
    """Return the licence of the backbone's weights; empty if the catalogue does not know it."""
    tag = config["headkit"]["backbone"]["tag"]
    try:
        (weights,) = architecture(f"{config['architecture']}.{tag}").tags if tag else ()
    except (UnknownArchitecture, ValueError):
        return ""
    return "" if weights.license == "unknown" else weights.license
