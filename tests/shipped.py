"""The modules that users install, parsed."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("adapters", "benchmarks", "export", "headkit", "registry")
NOT_SHIPPED = ("benchmarks/pages/", "benchmarks/studies/")


@cache
def shipped_modules() -> dict[str, ast.Module]:
    """The syntax tree of each shipped module, by its path from the root of the source tree."""
    modules = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):  # links in headkit/ are not followed
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(NOT_SHIPPED):
                modules[name] = ast.parse(path.read_text(encoding="utf-8"))
    return modules
