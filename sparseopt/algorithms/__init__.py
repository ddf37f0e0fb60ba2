"""The recipes: named methods of sparse training, each a few lines that return an Algorithm.

A recipe is a function of the target sparsity that returns an :class:`Algorithm`; the decorator
:func:`algorithm` gives it a name that ``SparseOptimizer(algo=...)`` understands.
"""

from .algorithm import Algorithm
from .alternating import acdc
from .constant_fan_in import srigl
from .drop_and_grow import rigl, set, static
from .gradual import gmp, granet_g, granet_r
from .hebbian import cht, chts, chtss
from .memory_bound import mest_g, mest_r
from .n_of_m import nm
from .registry import Recipe, Row, algorithm, available, find, option_names, resolve, table
from .sparse_momentum import snfs

__all__ = [
    "Algorithm",
    "Recipe",
    "Row",
    "acdc",
    "algorithm",
    "available",
    "cht",
    "chts",
    "chtss",
    "find",
    "gmp",
    "granet_g",
    "granet_r",
    "mest_g",
    "mest_r",
    "nm",
    "option_names",
    "resolve",
    "rigl",
    "set",
    "snfs",
    "srigl",
    "static",
    "table",
]
