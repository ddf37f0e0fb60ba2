"""Docstrings as the docs site needs them: an extension of griffe, which mkdocstrings reads with.

Ours are written for `help()`: roles, doctests and tables in reStructuredText. Here they become
Markdown.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|data|mod|attr):`([^`]+)`")
EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)
PROMPTS = re.compile(r"^(?: *>>> .*\n?)(?:^.*\S.*\n?)*", re.MULTILINE)
SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*)", re.MULTILINE)
TABLE = re.compile(
    r"^=+ +=[= ]+\n(?:.*\S.*\n)+?=+ +=[= ]+\n(?:.*\S.*\n)+?=+ +=[= ]+$", re.MULTILINE
)


def as_markdown(text: str) -> str:
    """The docstring with links for roles, and fences around prompts and tables.

    >>> as_markdown("See :func:`find`.")
    'See [`find`][find].'
    """
    text = ROLE.sub(lambda found: f"[`{found[1]}`][{found[1]}]", text)
    text = EXAMPLE.sub(r"\1Examples:", text)
    text = SEVERAL.sub(each_by_itself, text)
    text = TABLE.sub(lambda found: f"```text\n{found[0]}\n```", text)
    free, *examples = re.split(r"^(?=Examples:\n)", text, maxsplit=1, flags=re.MULTILINE)
    free = PROMPTS.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", free)
    return free + "".join(examples)


def each_by_itself(found: re.Match[str]) -> str:
    """One entry for each of the arguments that an entry names."""
    indent, names, meaning = found.groups()
    return "\n".join(f"{indent}{name}: {meaning}" for name in names.split(", "))


class Docstrings(griffe.Extension):
    """Rewrites every docstring, and shows functions that have the name of their module."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        loader.resolve_aliases()  # by their paths, through the modules that are now hidden
        for package in (pkg, *pkg.modules.values()):
            for name in package.modules.keys() & set(package.exports or ()):
                path = package.imports.get(name, package.modules[name].path)
                if path != package.modules[name].path:
                    target = loader.modules_collection[path]
                    package.members[name] = griffe.Alias(name, target, parent=package)
