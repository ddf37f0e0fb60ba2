"""Every recipe is registered, documented and refuses what it does not know."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparseopt
from sparseopt import algorithms
from sparseopt.algorithms import option_names, resolve, table
from sparseopt.algorithms.registry import RECIPES, ROWS
from sparseopt.schedules import Cubic
from sparseopt.scores import MagnitudeGradient

NAMES = sparseopt.available()
CHAIN = [["0.weight", "1.weight"]]


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_a_row_and_a_page(name: str, root: Path) -> None:
    assert f"[`{name}`](docs/algorithms/{name}.md)" in table()
    row = ROWS[name]
    default = getattr(algorithms, name)().distribution
    assert not isinstance(default, str) or name == "acdc" or row.distribution.startswith(default)
    page = (root / "docs" / "algorithms" / f"{name}.md").read_text()
    assert page.startswith(f"# {name}")
    for option in inspect.signature(RECIPES[name]).parameters:
        if option not in ("sparsity", "options", "total_steps"):
            assert f"`{option}`" in page, f"the page says nothing of {option}"


def test_the_table_has_one_row_for_each_recipe_and_one_column_for_each_axis() -> None:
    lines = table("algorithms/").splitlines()
    assert len(lines) == 2 + len(NAMES)
    assert all(line.count("|") == 7 for line in lines)
    assert "(algorithms/set.md)" in table("algorithms/")


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_documents_its_options_paper_and_example(name: str) -> None:
    recipe = getattr(algorithms, name)
    text = inspect.getdoc(recipe)
    own = [p for p in inspect.signature(recipe).parameters if p not in ("options",)]
    assert all(re.search(rf"^\s+{option}: ", text, re.M) for option in own)
    assert ">>>" in text


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_3_to_12_lines_besides_its_docstring(name: str) -> None:
    source = inspect.getsource(inspect.unwrap(getattr(algorithms, name)))
    body = ast.parse(source).body[0].body[1:]  # without the docstring
    assert body[-1].end_lineno - body[0].lineno + 1 <= 12


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(TypeError, match="takes no option 'distributon'.*distribution"):
        getattr(algorithms, name)(0.5, distributon="erk")


def test_a_recipe_takes_the_options_of_the_one_it_extends() -> None:
    assert {"bound", "variant", "stop"} <= {*option_names(RECIPES["mest_g"])}
    assert {"chains", "delta", "soft_grow"} <= {*option_names(RECIPES["chtss"])}
    assert algorithms.chtss(0.9, chains=CHAIN).exchange.chains == (("0.weight", "1.weight"),)


def test_a_recipe_is_told_the_length_of_training_that_the_one_it_extends_takes() -> None:
    @sparseopt.algorithm("short_acdc", options_of=algorithms.acdc)
    def short_acdc(sparsity: float = 0.5, **options: Any) -> sparseopt.Algorithm:
        lengths = {"warmup": 10, "sparse": 5, "dense": 5}
        return algorithms.acdc(sparsity, **lengths | options)

    try:
        made = resolve("short_acdc", 0.9, {}, total_steps=100)
        assert made.density == algorithms.acdc(0.9, warmup=0.1, sparse=0.05, dense=0.05).density
        with pytest.raises(ValueError, match="pass total_steps="):
            resolve("short_acdc", 0.9, {})
    finally:
        del RECIPES["short_acdc"]


def test_the_decorator_without_its_parentheses_is_told() -> None:
    with pytest.raises(TypeError, match=r'write @algorithm\("my_recipe"\)'):
        sparseopt.algorithm(lambda sparsity: algorithms.set(sparsity))  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["density", "pruned_density", "drop_fraction"])
def test_a_number_is_no_schedule(field: str) -> None:
    with pytest.raises(TypeError, match=rf"{field}=0.3 must be a schedule.*Constant\(0.3\)"):
        sparseopt.Algorithm(0.9, **{field: 0.3})


def test_a_density_tells_its_jumps_a_drop_fraction_need_not() -> None:
    with pytest.raises(TypeError, match="density=<function.* must be a schedule"):
        sparseopt.Algorithm(0.9, density=lambda progress: 0.1)  # type: ignore[arg-type]
    assert sparseopt.Algorithm(0.9, drop_fraction=lambda progress: 0.1).exchanges


@pytest.mark.parametrize("field", ["density", "pruned_density"])
@pytest.mark.parametrize("end", [0.0, -0.1, float("nan")])
def test_a_density_that_ends_at_nothing_is_refused_before_training(field: str, end: float) -> None:
    with pytest.raises(ValueError, match=rf"{field}=Cubic.* at progress .*: it must stay above 0"):
        sparseopt.Algorithm(0.9, **{field: Cubic(0.8, end)})


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_gradient_that_would_count_against_a_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight="):
        MagnitudeGradient(weight)


def test_numbers_of_numpy_are_numbers() -> None:
    half = np.float32(0.5)
    assert algorithms.rigl(half, stop=half, drop_fraction=half).stop == 0.5
    assert algorithms.mest_r(0.5, gradient_weight=half).drop == MagnitudeGradient(0.5)


@pytest.mark.parametrize("name", NAMES)
def test_algorithms_print_compare_and_copy(name: str) -> None:
    import copy
    import pickle

    one = getattr(algorithms, name)()
    assert one == getattr(algorithms, name)()
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    assert repr(one).startswith(f"Algorithm(sparsity=0.5, name='{name}'")


@pytest.mark.parametrize("wrong", ["0.1", None, True])
def test_a_drop_fraction_that_is_no_number_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="drop_fraction"):
        algorithms.rigl(0.5, drop_fraction=wrong)
    with pytest.raises(TypeError, match="bound"):
        algorithms.mest_r(0.5, bound=wrong)


def test_the_guide_writes_a_score_and_a_recipe_in_fewer_than_15_lines(root: Path) -> None:
    """That they run is what test_readme.py shows."""
    first = (root / "docs" / "extending.md").read_text().split("```")[1]
    lines = [line for line in first.splitlines() if line.startswith((">>> ", "... "))]
    assert "@score" in first and "@sparseopt.algorithm" in first
    assert 8 <= len(lines) < 15


def test_the_table_in_the_docs_is_the_generated_one(root: Path) -> None:
    page = (root / "docs" / "algorithms" / "README.md").read_text()
    assert table("") in page, "write it anew: print(sparseopt.algorithms.table(''))"


@pytest.mark.parametrize("name", ["snfs", "cht", "chts", "chtss", "srigl", "nm"])
def test_a_global_exchange_is_refused_where_layers_exchange_apart(name: str) -> None:
    with pytest.raises(ValueError, match="scope='global'"):
        getattr(algorithms, name)(scope="global")
