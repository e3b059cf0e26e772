"""Signatures of classes and functions, parsed from source: importing the trainer or timm takes seconds."""

import ast
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

DEEPEST = 6  # maximum number of re-exports followed


@dataclass(frozen=True)
class Signature:
    """Names of arguments with their annotations as written, and whether other keywords are accepted."""

    arguments: dict[str, str]
    any_keyword: bool


@lru_cache(maxsize=64)
def signature_of(target: str) -> Signature | None:
    """The signature of the class or function with a dotted path; None if its source does not show it.

    >>> signature_of("tasks.optimizers.create_optimizer").arguments["lr"]
    'float'
    """
    module, _, name = target.rpartition(".")
    try:
        return _find(module, name, DEEPEST)
    except (OSError, SyntaxError, ValueError, ImportError):
        return None


def optimizers() -> list[str]:
    """Names of timm's optimisers, parsed from its source."""
    file = _file("timm.optim._optim_factory")
    said = file.read_text(encoding="utf-8") if file else ""
    return sorted(set(re.findall(r"(?:\bname=|OptimInfo\(\s*|register_alias\()'(\w+)'", said)))


def _file(module: str) -> Path | None:
    top, *below = module.split(".")
    spec = find_spec(top)  # does not import a top-level package
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations)), *below)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _find(module: str, name: str, depth: int) -> Signature | None:
    file = _file(module)
    if file is None or depth == 0:
        return None
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _of_function(node)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _of_class(node)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(_absolute(node, module, file), alias.name, depth - 1)
    return None


def _absolute(node: ast.ImportFrom, module: str, file: Path) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    parents = package[: len(package) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _of_class(node: ast.ClassDef) -> Signature | None:
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return _of_function(part)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list) and not node.bases:
        fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
        return Signature({ast.unparse(part.target): ast.unparse(part.annotation) for part in fields}, False)
    return None


def _of_function(node: ast.FunctionDef) -> Signature:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    named = {part.arg: ast.unparse(part.annotation) if part.annotation else "" for part in arguments}
    named.pop("self", None)
    return Signature(named, node.args.kwarg is not None)
