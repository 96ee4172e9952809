"""What pyproject.toml cannot express: the links of the source tree, and those of the README."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINKED = ("adapters", "registry", "export", "benchmarks")


def check_links() -> None:
    """Refuse to build where git wrote the links in ``headkit/`` as text files, as on Windows."""
    broken = [f"headkit/{name}" for name in LINKED if not (ROOT / "headkit" / name).is_dir()]
    if broken:
        raise SystemExit(
            f"{', '.join(broken)}: found no folder, expected a symbolic link to one. git writes "
            "links as text files unless it may create them. On Windows, switch Developer Mode on, "
            "run `git config --global core.symlinks true`, and clone again."
        )


def readme() -> str:
    """Return README.md with absolute links: a package index shows it far from the other files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    source = project["urls"]["Source"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    relative = r"(?![a-z]+:|[#/])"
    text = re.sub(rf"(!\[[^\]]*\]\(|\bsrc=\"){relative}", rf"\g<1>{source}/raw/HEAD/", text)
    return re.sub(rf"(\]\(|\bhref=\"){relative}", rf"\g<1>{source}/blob/HEAD/", text)


check_links()
setup(long_description=readme(), long_description_content_type="text/markdown")
