"""The recipes: named methods of sparse training, each a few lines that return an Algorithm.

A recipe is a function of the target sparsity that returns an :class:`Algorithm`; the decorator
:func:`algorithm` gives it a name that ``SparseOptimizer(algo=...)`` understands.
"""

from .algorithm import Algorithm
from .drop_and_grow import rigl, set, static
from .registry import Recipe, algorithm, available, find, option_names, resolve

__all__ = [
    "Algorithm",
    "Recipe",
    "algorithm",
    "available",
    "find",
    "option_names",
    "resolve",
    "rigl",
    "set",
    "static",
]
