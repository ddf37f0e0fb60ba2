"""A recipe: one row of Table 3 of arXiv 2410.03030, as data. A JSON file beside this one for each.

python examples/recipes/recipe.py      # the table of README.md
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparseopt import algorithms, schedules

FOLDER = Path(__file__).resolve().parent
LEARNING_RATE_SCHEDULES = ("cosine", "step", "polynomial", "linear")
DROP_SCHEDULES = {
    "polynomial": schedules.Polynomial,
    "cosine": schedules.Cosine,
    "constant": schedules.Constant,
}


@dataclass(frozen=True)
class Recipe:
    """What a run needs to know besides the algorithm, the sparsity and the seed.

    Attributes:
        name: Name of the file.
        source: Where the numbers come from.
        model, data: Names that `networks.build` and `inputs.load` know.
        classes: Length of the model's output.
        size: Side of the input in pixels.
        samples: Training samples of the whole data set; for planning without it.
        epochs: Passes over them.
        batch_size: Samples of an optimizer step, over all processes.
        learning_rate: At the start.
        learning_rate_schedule: "cosine" and "polynomial" (power 0.9) fall to 0 step by step, "step"
            divides by 10 every 30 epochs, "linear" falls to 0.01 of the start over 90 % of epochs.
        optimizer: "sgd" with `momentum`, or "adamw".
        weight_decay: Of all parameters.
        distribution: How the weights are shared out: "uniform", "erk".
        update_every: Optimizer steps between topology updates (the paper's delta T).
        drop_fraction: Share of the active weights exchanged at the first update (the paper's P).
        drop_schedule: How that goes on: "polynomial" (power 0.01), "cosine" or "constant".
        stop: Fraction of training after which the topology rests.
        include, exclude: Layers that are made sparse, or not; see `SparseOptimizer`.
        topology: Which weights are active at the start; None: as the algorithm has it.
        initial_weights: "swi" draws the weights of sparse layers anew for their fan-in.
        pretrained: Whether the backbone comes with weights, a file given with --weights.
        widths: Of an MLP: input, hidden layers, output.
        frames: Of a clip.
        options: Options by name of the algorithm.
        notes: What the row leaves open, and what was chosen.
    """

    name: str
    source: str
    model: str
    data: str
    classes: int
    size: int
    samples: int
    epochs: int
    batch_size: int
    learning_rate: float
    learning_rate_schedule: str
    optimizer: str
    weight_decay: float
    distribution: str
    update_every: int
    drop_fraction: float
    drop_schedule: str
    momentum: float = 0.9
    stop: float = 1.0
    include: list[str] | None = None
    exclude: list[str] | None = None
    topology: str | None = None
    initial_weights: str | None = None
    pretrained: bool = False
    widths: list[int] | None = None
    frames: int | None = None
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check("learning_rate_schedule", self.learning_rate_schedule, LEARNING_RATE_SCHEDULES)
        check("drop_schedule", self.drop_schedule, DROP_SCHEDULES)
        check("optimizer", self.optimizer, ("sgd", "adamw"))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch over the whole data set; the last batch may be smaller."""
        return -(-self.samples // self.batch_size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        channels = 1 if self.data == "fashionmnist" else 3
        frames = () if self.frames is None else (self.frames,)
        return (channels, *frames, self.size, self.size)

    @property
    def test_batch_size(self) -> int:
        """Inputs of a batch where nothing is trained; pictures of VOC differ in size."""
        if self.data == "voc":
            return 1
        return 512 if self.size <= 64 else 2 * self.batch_size

    def algorithm_options(self, algorithm: str) -> dict[str, Any]:
        """The options of an algorithm under this recipe, as SparseOptimizer takes them."""
        known = algorithms.option_names(algorithms.find(algorithm))
        own = {
            "drop_fraction": DROP_SCHEDULES[self.drop_schedule](self.drop_fraction),
            "stop": self.stop,
            "distribution": self.distribution,
            "topology": self.topology,
        }
        if algorithm.startswith("mest"):
            del own["drop_fraction"]  # its P is the bound: 10 % in all tables (appendix A.3.2)
        if algorithm == "nm":
            del own["distribution"]  # n of every m is uniform
        own |= self.options.get(algorithm, {})
        return {name: own[name] for name in own if name in known and own[name] is not None}


def check(name: str, value: Any, known: typing.Iterable[str]) -> None:
    """Raise ValueError unless the value is a known one."""
    if value not in (known := list(known)):
        close = difflib.get_close_matches(str(value), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name}={value!r} must be one of {', '.join(known)}{hint}")


def names() -> list[str]:
    """Names of the recipes in this folder."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Recipe:
    """The recipe of that name, or in that file."""
    path = Path(name)
    if path.suffix != ".json":
        check("recipe", name, names())
        path = FOLDER / f"{name}.json"
    return make(path.stem, json.loads(path.read_text()))


def make(name: str, values: dict[str, Any]) -> Recipe:
    fields = {one.name for one in dataclasses.fields(Recipe)}
    for key in values:
        check(f"a line of recipe {name}", key, fields)
    return Recipe(**{"name": name} | values)


def override(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with other values, from "epochs=10" and the like.

    >>> override(load("vgg16-cifar10"), ["epochs=10", "learning_rate_schedule=step"]).epochs
    10
    """
    changed: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        check("--set", key, [one.name for one in dataclasses.fields(Recipe)])
        if not equals:
            raise ValueError(f"--set {setting} must be NAME=VALUE")
        changed[key] = parsed(text)
    return dataclasses.replace(recipe, **changed)


def parsed(text: str) -> Any:
    """A number, list, true, false or null as JSON has it; anything else is a string."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def table() -> str:
    """All recipes as a Markdown table, a column per setting."""
    heads = (
        "recipe", "epochs", "LR", "batch", "LR schedule", "optimizer", "weight decay",
        "distribution", "update every", "drop schedule", "P",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for recipe in map(load, names()):
        cells = (
            f"[`{recipe.name}`]({recipe.name}.json)", recipe.epochs, recipe.learning_rate,
            recipe.batch_size, recipe.learning_rate_schedule, recipe.optimizer,
            f"{recipe.weight_decay:g}", recipe.distribution, recipe.update_every,
            recipe.drop_schedule, recipe.drop_fraction,
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
