"""A head whose labels, notes and sources hold control characters for the user's terminal.

At 64f666f, ``headkit info`` printed them as they were: a label could clear the screen, write over
other lines, or turn the reading direction. Now the terminal gets them as escapes such as ``\\x1b``,
and a description refuses them where they mean nothing.
"""

from pathlib import Path

from tests.attacks.hostile_files import run_headkit, write_head

HOSTILE = ["\x1b[2Jcat", "\x9b31mdog\x07", "fox\u202exof\r\noverwritten"]
CONTROLS = {"\x1b", "\x9b", "\x07", "\u202e", "\r"}


def test_terminal_gets_no_control_character(tmp_path: Path) -> None:
    path = write_head(tmp_path / "x.safetensors", label_names=HOSTILE, notes="\x1b]0;title\x07")
    store = tmp_path / "store"
    commands = (
        ("info", path),
        ("heads", "publish", path, "--name", "x", "--notes", "\x1b[2J", "--store", store),
        ("heads", "show", "x", "--store", store),
        ("heads", "list", "--store", store),
    )
    for command in commands:
        done = run_headkit(*command)
        assert done.returncode == 0, done.stderr
        assert not CONTROLS & set(done.stdout + done.stderr), command


def test_control_characters_of_an_architecture_are_refused_in_plain_text(tmp_path: Path) -> None:
    path = write_head(tmp_path / "x.safetensors", architecture="resnet18\x1b[2J")
    done = run_headkit("info", path)
    assert done.returncode == 2
    assert not CONTROLS & set(done.stdout + done.stderr)
