"""Inputs are always the same, and most of them are not random bytes but changed structures."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from random import Random

import numpy as np
import pytest
import safetensors.numpy
from safetensors import SafetensorError

from headkit.benchmarks.studies.security.fuzzing.mutations import json_values, parts, requests
from headkit.benchmarks.studies.security.fuzzing.mutations.images import draw_images, edit_image
from headkit.benchmarks.studies.security.fuzzing.mutations.onnx_models import edit_model
from headkit.benchmarks.studies.security.fuzzing.mutations.tables import edit_table
from headkit.benchmarks.studies.security.fuzzing.mutations.tensor_files import edit_tensor_file
from tests.fixtures import HEADS, MODELS

HEAD = HEADS / "resnet_own.safetensors"
MODEL = MODELS / "resnet_merged.onnx"
REQUEST = {
    "method": b"POST",
    "target": b"/predict",
    "headers": b"content-type: multipart/form-data; boundary=edge",
    "fields": parts.join({"0": requests.encode_field("head", b"plain")}),
}
CHANGES = {
    "head": lambda random: edit_tensor_file(HEAD.read_bytes(), random),
    "model": lambda random: edit_model(MODEL.read_bytes(), random),
    "image": lambda random: edit_image(random.choice(draw_images()), random),
    "table": lambda random: edit_table(b"path,label\na.png,cat\nb.png,dog\n", random),
    "request": lambda random: requests.edit_request(parts.join(REQUEST), random),
    "json": lambda random: json_values.edit_json('{"a": [1, {"b": "c"}]}', random).encode(
        "utf-8", "surrogatepass"
    ),
}
PRINT_HASH = """
from tests.benchmarks.studies.security.fuzzing.test_inputs import hash_inputs
print(hash_inputs({!r}))
"""


def hash_inputs(kind: str) -> str:
    inputs = (CHANGES[kind](Random(seed)) for seed in range(40))  # noqa: S311
    return sha256(b"".join(inputs)).hexdigest()


@pytest.mark.parametrize("kind", CHANGES)
def test_a_seed_gives_the_same_bytes_in_another_process(kind: str) -> None:
    root = Path(__file__).parents[5]
    for hash_seed in ("1", "2"):  # the order of sets differs
        done = subprocess.run(
            [sys.executable, "-c", PRINT_HASH.format(kind)],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == hash_inputs(kind)


@pytest.mark.parametrize("kind", CHANGES)
def test_inputs_differ(kind: str) -> None:
    inputs = {CHANGES[kind](Random(seed)) for seed in range(200)}  # noqa: S311
    assert len(inputs) > 120


def test_most_changed_json_texts_are_json() -> None:
    text = json.dumps({"a": [1, 2.5, {"b": "text", "c": None}], "d": {"e": [True, "x"]}})
    valid = 0
    for seed in range(300):
        changed = json_values.edit_json(text, Random(seed))  # noqa: S311
        try:
            json.loads(changed)
            valid += 1
        except (ValueError, RecursionError):
            continue
    assert 150 < valid < 300


def test_many_changed_tensor_files_can_still_be_read() -> None:
    content = safetensors.numpy.save({"a": np.ones((2, 3), np.float32)}, {"head": "{}"})
    readable = 0
    for seed in range(300):
        try:
            safetensors.numpy.load(edit_tensor_file(content, Random(seed)))  # noqa: S311
            readable += 1
        except (SafetensorError, ValueError, KeyError):
            continue
    assert 30 < readable < 280


def test_parts_come_apart_again() -> None:
    named = {"a": b"1", "b/c": b"", "\udcff": b"\0\xff"}
    assert parts.split(parts.join(named)) == named
