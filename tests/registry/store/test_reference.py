import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkit import RegistryError
from headkit.registry.store.reference import Reference, looks_like_reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flowers", Reference("flowers", tag="latest")),
        ("flowers@latest", Reference("flowers", tag="latest")),
        ("flowers@3", Reference("flowers", version=3)),
        ("flowers@prod", Reference("flowers", tag="prod")),
        ("a.b-c_9@v1.2", Reference("a.b-c_9", tag="v1.2")),
        ("sha256:" + "0a" * 32, Reference(digest="0a" * 32)),
        ("sha256:0123abcd", Reference(digest="0123abcd")),
    ],
)
def test_forms_of_references(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected
    assert Reference.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "@3", "flowers@", "flowers@0", "flowers@03", "flowers@-1", "flowers@Prod", "a@b@c"),
        *("../x", "..", ".", "a/b", "a\\b", "a..b", ".hidden", "a.", "Flowers", "flo wers", "a\n"),
        *("a\0b", "ü", "x" * 64, "sha256:", "sha256:0123", "sha256:XYZ01234", "sha256:" + "0" * 65),
        *("flowers@../x", "flowers@9999999999"),
    ],
)
def test_malformed_references_are_refused(text: str) -> None:
    with pytest.raises(RegistryError):
        Reference.parse(text)


@given(st.text(max_size=80))
def test_parsed_references_are_safe_as_keys(text: str) -> None:
    try:
        found = Reference.parse(text)
    except RegistryError:
        return
    for part in (found.name, found.tag or ""):
        assert not set(part) - set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
        assert ".." not in part
        assert not part.startswith(".")


def test_paths_do_not_look_like_references() -> None:
    assert looks_like_reference("flowers")
    assert looks_like_reference("flowers@prod")
    assert looks_like_reference("sha256:0123abcd")
    for path in ("flowers.safetensors", "a/b", "./flowers", "a@b/c", "model.onnx", "/x@3", "c:\\x"):
        assert not looks_like_reference(path)
