"""Recipes by name: what ``SparseOptimizer(algo=...)`` understands."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import numbers
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..distributions import check_sparsity
from ..schedules import Constant, starting_at
from .algorithm import Algorithm

__all__ = ["Recipe", "Row", "algorithm", "available", "find", "resolve", "table"]

COMMON = (
    "distribution",
    "topology",
    "scope",
    "regrow_same",
    "grown_state",
    "start",
    "stop",
    "rounding",
    "skip_step_on_update",
)
"""Fields of Algorithm that every recipe takes as options."""

Recipe = Callable[..., Algorithm]
"""A function of the target sparsity, and of options by keyword, that returns an Algorithm."""

RECIPES: dict[str, Recipe] = {}


@dataclass(frozen=True)
class Row:
    """A recipe's row in the table of methods: what it chooses on each axis, in a few words.

    Attributes:
        drops: By what weights are dropped.
        grows: By what weights are grown.
        density: How the density goes over time.
        distribution: How the weights are shared out over the layers.
        paper: First author and year.
    """

    drops: str
    grows: str
    density: str
    distribution: str
    paper: str

    @property
    def year(self) -> int:
        """Year of the paper named first; 0 without one."""
        found = re.search(r"\d{4}", self.paper)
        return int(found.group()) if found else 0


ROWS: dict[str, Row] = {}


def algorithm(
    name: str, row: Row | None = None, *, options_of: Recipe | None = None
) -> Callable[[Recipe], Recipe]:
    """Register a recipe under a name that ``SparseOptimizer(algo=name)`` understands.

    Args:
        name: The name; registering it again replaces the recipe.
        row: What :func:`table` says of it; None: it is not listed there.
        options_of: A recipe whose options this one takes too, and hands on to it.

    Raises:
        TypeError: If ``name`` is no string: the decorator is written with its parentheses.

    Example:
        >>> from sparseopt.algorithms import rigl
        >>> @algorithm("lazy_rigl", options_of=rigl)
        ... def lazy_rigl(sparsity=0.5, **options):
        ...     return rigl(sparsity, **{"drop_fraction": 0.05} | options)
        >>> lazy_rigl(0.9, stop=0.5).name, "lazy_rigl" in available()
        ('lazy_rigl', True)
        >>> del RECIPES["lazy_rigl"]
    """

    if not isinstance(name, str):
        raise TypeError(f'name={name!r} must be a string: write @algorithm("my_recipe")')

    def register(recipe: Recipe) -> Recipe:
        @functools.wraps(recipe)
        def named(*args: Any, **options: Any) -> Algorithm:
            check_options(named, name, options)
            check_kinds(named, options)
            return dataclasses.replace(recipe(*args, **options), name=name)

        named.options_of = options_of  # type: ignore[attr-defined]
        RECIPES[name] = named
        ROWS.pop(name, None)
        if row is not None:
            ROWS[name] = row
        return named

    return register


def table(pages: str = "docs/algorithms/") -> str:
    """The recipes as a Markdown table, one column per axis, oldest first.

    Args:
        pages: Where the recipes' pages are, as seen from the file that shows the table.

    Example:
        >>> print("\\n".join(table().splitlines()[:2]))
        | name | drops by | grows by | density over time | distribution | paper |
        |---|---|---|---|---|---|
    """
    lines = ["| name | drops by | grows by | density over time | distribution | paper |"]
    lines.append("|---" * 6 + "|")
    for name, row in sorted(ROWS.items(), key=lambda item: (item[1].year, item[0])):
        cells = (row.drops, row.grows, row.density, row.distribution, row.paper)
        lines.append(f"| [`{name}`]({pages}{name}.md) | {' | '.join(cells)} |")
    return "\n".join(lines)


def available() -> list[str]:
    """Names of all recipes, in alphabetical order.

    >>> {"static", "set", "rigl"} <= {*available()}
    True
    """
    return sorted(RECIPES)


def option_names(recipe: Recipe) -> list[str]:
    """The options that a recipe takes besides the sparsity.

    >>> "signed" in option_names(RECIPES["set"])
    True
    """
    parameters = inspect.signature(recipe).parameters
    own = [name for name, parameter in parameters.items() if parameter.kind < parameter.VAR_KEYWORD]
    common = COMMON if len(own) < len(parameters) else ()
    base = getattr(recipe, "options_of", None)
    inherited = option_names(base) if base is not None else []
    names = dict.fromkeys((*own, *inherited, *common))
    return [name for name in names if name != "sparsity"]


def check_options(recipe: Recipe, name: str, options: dict[str, Any]) -> None:
    """Raise TypeError for an option that the recipe does not take, with the nearest names."""
    known = option_names(recipe)
    for option in options:
        if option not in known and option != "sparsity":
            raise TypeError(
                f"algo={name!r} takes no option {option!r}{_nearest(option, known)}; "
                f"it takes {', '.join(known)}"
            )


def check_kinds(recipe: Recipe, options: dict[str, Any]) -> None:
    """Raise TypeError for an option that is no number, or no truth value, where one is declared."""
    parameters = inspect.signature(recipe).parameters
    for option, value in options.items():
        declared = parameters[option].annotation if option in parameters else None
        what, kind = KINDS.get(getattr(declared, "__name__", declared), ("", object))
        a_flag_for_a_number = isinstance(value, bool) and kind not in (bool, object)
        if a_flag_for_a_number or not isinstance(value, kind):
            raise TypeError(f"{option}={value!r} must be {what}")


KINDS: dict[Any, tuple[str, Any]] = {
    "bool": ("True or False", bool),
    "float": ("a number", numbers.Real),
    "float | None": ("a number, or None", (numbers.Real, type(None))),
}


def find(name: str) -> Recipe:
    """The recipe of that name; raises ValueError with the nearest names."""
    if name not in RECIPES:
        raise ValueError(
            f"algo={name!r} is not one of {', '.join(available())}{_nearest(name, available())}; "
            "pass a sparseopt.Algorithm to use your own"
        )
    return RECIPES[name]


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(str(word), known, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def resolve(
    algo: str | Algorithm | Recipe,
    sparsity: float | None,
    options: dict[str, Any],
    total_steps: int | None = None,
) -> Algorithm:
    """The algorithm for one target sparsity.

    Args:
        algo: Name of a recipe, a recipe, or an Algorithm, which brings its own sparsity.
        sparsity: The target, in [0, 1); None with an Algorithm: its own.
        options: Options of the recipe, or fields of the Algorithm that override its own.
        total_steps: Length of training, for recipes that take it (phases given in steps).

    Raises:
        ValueError: For an unknown name or a value out of range.
        TypeError: For an option that it does not take, or an ``algo`` of another kind.
    """
    if isinstance(algo, Algorithm):
        return _adapted(algo, sparsity, options)
    recipe = find(algo) if isinstance(algo, str) else algo
    if isinstance(algo, nn.Module):  # callable, but no recipe
        raise TypeError(f"algo= is a module ({type(algo).__name__}): pass it as model=")
    if not callable(recipe):
        raise TypeError(
            f"algo={algo!r} must be the name of a recipe, a recipe or a sparseopt.Algorithm"
        )
    if "total_steps" in option_names(recipe):
        options = {"total_steps": total_steps, **options}
    made = recipe(check_sparsity(0.5 if sparsity is None else sparsity), **options)
    if not isinstance(made, Algorithm):
        raise TypeError(f"the recipe {recipe!r} returned {made!r}, not a sparseopt.Algorithm")
    return made


def _adapted(algorithm: Algorithm, sparsity: float | None, options: dict[str, Any]) -> Algorithm:
    known = [field.name for field in dataclasses.fields(Algorithm)]
    for option in options:
        if option not in known:
            raise TypeError(
                f"an Algorithm has no field {option!r}{_nearest(option, known)}; "
                f"it has {', '.join(known)}"
            )
    if "drop_fraction" in options:
        fraction = starting_at(algorithm.drop_fraction, options["drop_fraction"])
        options = {**options, "drop_fraction": fraction}
    if sparsity is not None and sparsity != algorithm.sparsity:
        if not isinstance(algorithm.density, Constant) or algorithm.pruned_density is not None:
            raise ValueError(
                f"sparsity={sparsity}: the Algorithm {algorithm.name!r} is made for "
                f"sparsity={algorithm.sparsity} and its density changes over training; pass the "
                "recipe instead (algo=its name or function), which is made for every sparsity"
            )
        options = {**options, "sparsity": check_sparsity(sparsity), "density": None}
    return dataclasses.replace(algorithm, **options)
