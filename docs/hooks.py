"""What the docs site does to the files of the repository, so that they read well in both places.

Hooks of mkdocs (see mkdocs.yml): patterns in the navigation stand for the pages that they fit,
pages outside docs/ are taken along, links follow, and blocks with prompts are coloured as such.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FROM_ROOT = {
    "changes.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "examples.md": "examples/README.md",
    "demo.png": "examples/demo.png",
    "recipes.md": "examples/recipes/README.md",
}
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
PROMPT = re.compile(r"^```python\n(?=>>> )", re.MULTILINE)


def expanded(nav: Any, docs: Path) -> Any:
    """The navigation with every pattern replaced by the pages that it fits, README first."""
    if isinstance(nav, list):
        made = [expanded(entry, docs) for entry in nav]
        return [page for one in made for page in (one if isinstance(one, list) else [one])]
    if isinstance(nav, dict):
        return {title: expanded(entry, docs) for title, entry in nav.items()}
    if "*" not in nav:
        return nav
    pages = sorted(docs.glob(nav), key=lambda page: (page.name != "README.md", page))
    return [page.relative_to(docs).as_posix() for page in pages]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = expanded(config.nav, Path(config.docs_dir))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, path in FROM_ROOT.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    where = {file.abs_src_path: file for file in files}

    def followed(found: re.Match[str]) -> str:
        target = (Path(page.file.abs_src_path).parent / found["target"]).resolve()
        if str(target) in where:
            uri = os.path.relpath(where[str(target)].src_uri, Path(page.file.src_uri).parent)
            return f"[{found['text']}]({uri}{found['anchor'] or ''})"
        if not target.exists() or not target.is_relative_to(ROOT):
            return found[0]  # mkdocs says what is wrong with it
        path = target.relative_to(ROOT).as_posix()
        if config.repo_url:
            return f"[{found['text']}]({config.repo_url.rstrip('/')}/blob/main/{path})"
        return found["text"] if target.stem in found["text"] else f"{found['text']} (`{path}`)"

    return PROMPT.sub("```pycon\n", LINK.sub(followed, markdown))
