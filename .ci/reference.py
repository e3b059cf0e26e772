"""Pages of the reference for MkDocs: one for every module, so that a new one is never forgotten."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("modalities", "backbone", "tasks", "workbench")
API = "workbench.api"  # installed as `widefield`


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            below = file.relative_to(ROOT).with_suffix("")
            name = ".".join(below.parts).removesuffix(".__init__")
            if not file.read_text(encoding="utf-8").strip():
                continue
            page = (
                "widefield.md" if name == API else f"{'/'.join(below.parts).replace('__init__', 'index')}.md"
            )
            title = "widefield" if name == API else name
            members = "" if name != API else "    options: {members: [load, Model, Input]}\n"
            content = f"---\ntitle: {title}\n---\n\n::: {name}\n{members}"
            files.append(File.generated(config, page, content=content))
    return files
