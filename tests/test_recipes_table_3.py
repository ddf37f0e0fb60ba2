"""The recipes of examples/recipes have the numbers of Table 3, and cost what the tables print."""

from __future__ import annotations

import doctest
import re
import shlex

import pytest
from recipe_runs import CHT, FOLDER, MODELS, PRINTED, SAMPLES

import sparseopt


@pytest.mark.parametrize("name", PRINTED)
def test_a_recipe_has_the_numbers_of_table_3(example, name):
    (model, data, epochs, rate, batch, schedule, optimizer, decay, distribution, every, drop,
     fraction) = PRINTED[name]  # fmt: skip
    recipe = example.recipe.load(name)
    assert recipe.model == MODELS[model]
    assert data.lower().replace("-", "").replace("pascal voc 2012", "voc") == recipe.data
    numbers = (recipe.epochs, recipe.learning_rate, recipe.batch_size, recipe.weight_decay,
               recipe.update_every, recipe.drop_fraction)  # fmt: skip
    assert numbers == tuple(map(float, (epochs, rate, batch, decay, every, fraction)))
    words = (recipe.learning_rate_schedule, recipe.optimizer, recipe.distribution)
    assert words == (schedule.lower(), optimizer.lower(), distribution.lower())
    assert recipe.drop_schedule == drop and recipe.momentum == 0.9 and recipe.stop == 1.0
    assert recipe.samples == SAMPLES[recipe.data] and "Table 3" in recipe.source


def test_every_row_has_a_recipe_and_every_recipe_a_row(example):
    assert set(example.recipe.names()) == {*PRINTED, CHT}


def test_the_preset_of_cannistraci_hebb_training_differs_where_its_code_does(example):
    ours, printed = example.recipe.load(CHT), example.recipe.load("mlp-fashionmnist")
    assert (ours.epochs, ours.learning_rate, ours.weight_decay) == (100, 0.025, 5e-4)
    assert (ours.batch_size, ours.learning_rate_schedule, ours.distribution) == (
        32, "linear", "uniform",
    )  # fmt: skip
    assert (ours.drop_fraction, ours.drop_schedule) == (0.3, "constant")
    assert ours.update_every == ours.steps_per_epoch == 1875
    assert ours.widths == [784, 1568, 1568, 1568, 10] and ours.exclude == ["7"]
    assert ours.data == printed.data and ours.algorithm_options("chts")["stop"] == 0.75


def test_the_drop_fraction_of_the_table_reaches_the_algorithm(example):
    from sparseopt.schedules import Cosine, Polynomial

    vgg, fcn = (example.recipe.load(name) for name in ("vgg16-cifar10", "fcn-vgg16-voc"))
    chosen = vgg.algorithm_options("rigl")
    assert chosen == {
        "drop_fraction": Polynomial(0.1, power=0.01), "stop": 1.0, "distribution": "uniform",
    }  # fmt: skip
    assert fcn.algorithm_options("set")["drop_fraction"] == Cosine(0.5)
    assert fcn.algorithm_options("set")["topology"] == "magnitude"
    assert "drop_fraction" not in vgg.algorithm_options("mest_g")  # its P is the bound
    assert "drop_fraction" not in vgg.algorithm_options("static")


def test_mest_and_granet_start_where_the_paper_says(example):
    tiny, imagenet = (
        example.recipe.load(name) for name in ("efficientnet-b0-tinyimagenet", "resnet50-imagenet")
    )
    for recipe, sparsity, mest, granet in ((tiny, 0.7, 0.33, 0.8), (imagenet, 0.1, 0.92, 0.95)):
        for algo, density in (("mest_g", mest), ("granet_g", granet)):
            made = getattr(sparseopt.algorithms, algo)(sparsity, **recipe.algorithm_options(algo))
            assert made.density(0.0) == pytest.approx(density), (recipe.name, algo)


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("cosine", [1.0, 0.5, 0.0]),
        ("polynomial", [1.0, 0.5**0.9, 0.0]),
        ("linear", [1.0, 1 - 0.99 / 1.8, 0.01]),
        ("step", [1.0, 0.1, 0.001]),
    ],
)
def test_learning_rates_at_the_start_the_middle_and_the_end(example, schedule, expected):
    epochs, per_epoch = 90 if schedule == "step" else 10, 7
    steps = (0, epochs * per_epoch // 2, epochs * per_epoch)
    got = [example.training.learning_rate_factor(schedule, t, per_epoch, epochs) for t in steps]
    assert got == pytest.approx(expected)


def test_a_value_can_be_changed_and_a_wrong_name_is_named(example):
    recipe = example.recipe.load("vgg16-cifar10")
    changed = example.recipe.override(recipe, ["epochs=3", "topology=magnitude", "exclude=null"])
    assert (changed.epochs, changed.topology, changed.exclude) == (3, "magnitude", None)
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        example.recipe.override(recipe, ["epoch=3"])
    with pytest.raises(ValueError, match="did you mean 'vgg16-cifar10'"):
        example.recipe.load("vgg16-cifar")
    with pytest.raises(ValueError, match="learning_rate_schedule='cosin' must be one of"):
        example.recipe.override(recipe, ["learning_rate_schedule=cosin"])


def test_the_examples_in_the_docstrings_run(example):
    for module in (example.recipe, example.training):
        tried = doctest.testmod(module)
        assert tried.attempted > 0 and tried.failed == 0


def test_the_page_has_the_table_and_every_recipe(example):
    page = (FOLDER / "README.md").read_text()
    assert example.recipe.table() in page


def test_the_sample_on_the_page_is_what_its_command_prints_but_for_the_numbers(
    example, tmp_path, capsys
):
    page = (FOLDER / "README.md").read_text()
    sample = page.partition("<!-- table: recipe -->\n```\n$ python ")[2].partition("\n```")[0]
    command, printed = re.split(r"(?<!\\)\n", sample, maxsplit=1)
    script, *arguments = shlex.split(command.replace("\\\n", ""))
    assert script == "examples/recipes/run.py"
    quick = ["--set", "epochs=2", "batch_size=4", "update_every=2", "--data", "fake", "--tiny"]
    example.run.main([*arguments, *quick, "--out", str(tmp_path)])
    assert without_numbers(capsys.readouterr().out) == without_numbers(printed)


def without_numbers(text: str) -> str:
    return re.sub(r"\d[\d,.]*(e[+-]\d+)?", "#", " ".join(text.split()))


# Tables 4-6: training FLOPs, FLOPs of a sample, parameters at S = 0.5, each in its unit
@pytest.mark.parametrize(
    "name, training, inference, parameters",
    [
        ("vgg16-cifar10", 0.76e16, 3.17e8, 7.89e6),
        ("resnet34-cifar100", 2.79e16, 1.18e9, 10.70e6),
        ("efficientnet-b0-tinyimagenet", 1.04e15, 3.48e7, 2.29e6),  # printed a column too far right
    ],
)
def test_the_plan_costs_what_the_paper_prints(
    example, capsys, name, training, inference, parameters
):
    found = example.run.main([name, "--plan", "--algo", "set", "--sparsity", "0.5"])["flops"]
    assert found.training == pytest.approx(training, rel=0.003)
    assert found.inference == pytest.approx(inference, rel=0.02)
    assert found.parameters == pytest.approx(parameters, rel=0.002)
    assert f"{found.parameters:,}" in capsys.readouterr().out


def test_the_plan_of_resnet50_has_the_parameters_of_table_7(example):
    found = example.run.main(["resnet50-imagenet", "--plan", "--sparsity", "0.1"])["flops"]
    assert found.parameters == pytest.approx(23.00e6, rel=0.001)
    assert found.steps == 90 * 5005
