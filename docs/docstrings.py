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
BOUND = re.compile(r"^(\s*(?:\w+: )?)>(?==? )", re.MULTILINE)  # would be a quotation


def as_markdown(text: str) -> str:
    """The docstring with links for roles, fences around prompts, and bars in tables.

    >>> as_markdown("See :func:`find`.")
    'See [`find`][find].'
    """
    text = ROLE.sub(lambda found: f"[`{found[1]}`][{found[1]}]", text)
    text = BOUND.sub(r"\1\>", text)
    text = EXAMPLE.sub(r"\1Examples:", text)
    text = SEVERAL.sub(each_by_itself, text)
    text = TABLE.sub(as_table, text)
    free, *examples = re.split(r"^(?=Examples:\n)", text, maxsplit=1, flags=re.MULTILINE)
    free = PROMPTS.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", free)
    return free + "".join(examples)


def as_table(found: re.Match[str]) -> str:
    """A simple table of reStructuredText, whose cells stand two spaces apart, with bars."""
    lines = [line for line in found[0].splitlines() if not line.startswith("=")]
    rows = [re.split(r" {2,}", line) for line in lines]
    wide = max(map(len, rows))
    head, *body = (" | ".join(row + [""] * (wide - len(row))) for row in rows)
    return "\n".join(f"| {line} |" for line in (head, "|".join(["---"] * wide), *body))


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
