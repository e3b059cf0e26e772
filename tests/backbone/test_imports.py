"""Arrows inside the package go one way."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def modules() -> dict[str, Path]:
    found = {}
    for file in sorted((ROOT / "backbone").rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = file
    return found


def test_no_two_files_import_each_other() -> None:
    known = modules()
    needs: dict[str, set[str]] = {}
    for name, file in known.items():
        needs[name] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in known:
                # `from backbone.kernels import gram` needs the file gram.py.
                needs[name] |= {
                    f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in known else node.module
                    for alias in node.names
                }
    assert [(one, two) for one in known for two in needs[one] if one in needs.get(two, ())] == []
