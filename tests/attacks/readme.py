"""Write README.md of this folder from the docstrings: ``python -m tests.attacks.readme``.

The docstring of each script says what it tries, what came of it at 64f666f, and what happens now.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent
README = ROOT / "README.md"
BEFORE = "At 64f666f, "
_HEADER = """# Attacks

Each script in this folder tries to harm whoever uses headkit. Commit 64f666f is the state before
the attacks were answered: there, each script failed. Single cases in its tables may have been
refused there already; they test that they still are. The tests run all scripts.
`python -m tests.attacks.readme` writes this page from the scripts.
"""


def scripts() -> list[Path]:
    """Return the paths of all scripts."""
    return sorted(path for path in ROOT.rglob("test_*.py") if path.parent != ROOT)


def describe(script: Path) -> tuple[str, str, str]:
    """Return what a script tries, what came of it at 64f666f, and what happens now.

    Raises:
        ValueError: Its docstring does not say all three.
    """
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    attack, _, rest = text.partition("\n\n")
    found = re.fullmatch(rf"(.*?){BEFORE}(.+?) Now (.+)", " ".join(rest.split()))
    if not found or not attack:
        raise ValueError(f"{script}: its docstring has to say what came of it at 64f666f, and now")
    before, now = found[1] + _sentence(found[2]), _sentence(found[3])
    return " ".join(attack.split()).replace("|", "/"), before, now


def render() -> str:
    """Return the content of README.md."""
    lines = [_HEADER]
    for folder in sorted({path.parent for path in scripts()}):
        lines += [f"## {folder.name.capitalize()}", ""]
        lines += ["| script | attack | at 64f666f | now |", "| --- | --- | --- | --- |"]
        for path in scripts():
            if path.parent == folder:
                link = f"[{path.stem.removeprefix('test_')}]({path.relative_to(ROOT).as_posix()})"
                lines.append(f"| {link} | {' | '.join(describe(path))} |".replace("``", "`"))
        lines.append("")
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


if __name__ == "__main__":
    README.write_text(render(), encoding="utf-8")
