"""How many weights does every layer get? The share of each layer, and its exact rounding.

Three distributions by name, and any callable ``(shapes, sparsity) -> counts``. Rounding of counts
lives here and nowhere else: the whole network gets ``floor(density * total + 0.5)`` weights, shared
out by largest remainder.
"""

from __future__ import annotations

import difflib
import math
import numbers
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence

__all__ = ["allocate", "check_sparsity", "counts", "densities", "er", "erk", "uniform"]

Shapes = Sequence[Sequence[int]]
Distribution = str | Callable[[Shapes, float], Sequence[int]]


def uniform(shapes: Shapes, sparsity: float) -> list[int]:
    """Every layer at the same density.

    Args:
        shapes: shape of every layer's weight.
        sparsity: fraction of all weights that are zero, in [0, 1).

    Returns:
        The number of active weights per layer; together ``floor((1 - sparsity) * total + 0.5)``.

    Raises:
        ValueError: if ``sparsity`` lies outside [0, 1) or a shape is not made of whole numbers.

    Example:
        >>> uniform([(4, 4), (16, 8), (10, 16)], 0.9)
        [1, 13, 16]
    """
    return counts("uniform", shapes, 1.0 - check_sparsity(sparsity))


def er(shapes: Shapes, sparsity: float) -> list[int]:
    """Narrow layers denser than wide ones: density proportional to (n_in + n_out) / (n_in * n_out).

    Erdos-Renyi (Mocanu et al. 2018, eq. 3): kernel dimensions are left out. A layer whose share
    would pass 1 is dense, and the others share what it leaves.

    Args:
        shapes: shape of every layer's weight, outputs first, inputs second.
        sparsity: fraction of all weights that are zero, in [0, 1).

    Returns:
        The number of active weights per layer; together ``floor((1 - sparsity) * total + 0.5)``.

    Raises:
        ValueError: as `uniform`, or if a shape has fewer than two dimensions.

    Example:
        >>> er([(300, 784), (100, 300), (10, 100)], 0.9)
        [18714, 6906, 1000]
    """
    return counts("er", shapes, 1.0 - check_sparsity(sparsity))


def erk(shapes: Shapes, sparsity: float, power: float = 1.0) -> list[int]:
    """Small layers denser than large ones: density proportional to sum(shape) / prod(shape).

    Erdos-Renyi-Kernel (Evci et al. 2020, section 3): as `er`, with the kernel's dimensions in the
    sum and in the product. A layer whose share would pass 1 is dense.

    Args:
        shapes: shape of every layer's weight.
        sparsity: fraction of all weights that are zero, in [0, 1).
        power: exponent of sum / prod; 0 is `uniform`.

    Returns:
        The number of active weights per layer; together ``floor((1 - sparsity) * total + 0.5)``.

    Raises:
        ValueError: as `uniform`, or if ``power`` is not finite.

    Example:
        >>> erk([(4, 2, 3, 3, 3), (8, 4, 1, 1, 1), (3, 8)], 0.8)
        [20, 20, 14]
    """
    sizes = _sizes(shapes)
    density = 1.0 - check_sparsity(sparsity)
    ideal = _fill([_erk_score(shape, power) for shape in shapes], sizes, density)
    return allocate(ideal, sizes, _budget(density, sizes))


def densities(distribution: Distribution, shapes: Shapes, sparsity: float) -> list[float]:
    """The ideal density of every layer, before rounding to whole weights.

    Args:
        distribution: a name, or a callable ``(shapes, sparsity) -> counts``.
        shapes: shape of every layer's weight.
        sparsity: fraction of all weights that are zero, in [0, 1).

    Returns:
        One density in [0, 1] per layer; weighted by size they average to ``1 - sparsity``.

    Raises:
        ValueError: for an unknown name, a bad ``sparsity``, or counts that do not fit ``shapes``.

    Example:
        >>> [round(d, 4) for d in densities("erk", [(4, 4), (4, 4), (64, 64)], 0.5)]
        [1.0, 1.0, 0.4961]
    """
    return _ideal(distribution, shapes, 1.0 - check_sparsity(sparsity))


def counts(
    distribution: Distribution,
    shapes: Shapes,
    density: float,
    caps: Sequence[int] | None = None,
) -> list[int]:
    """The number of active weights of every layer at this density of the whole network.

    Args:
        distribution: a name, or a callable ``(shapes, sparsity) -> counts`` whose own total holds.
        shapes: shape of every layer's weight.
        density: fraction of all weights that are active, above 0; from 1 on every layer is dense.
        caps: the most each layer may get, for densities that shrink over time: see `allocate`.

    Returns:
        One count per layer, at least 1 for every layer that has a weight.

    Raises:
        ValueError: for an unknown name, a density that is not above 0, or counts that do not fit.

    Example:
        >>> counts("uniform", [(5,), (3,), (5,)], 7 / 13)
        [3, 1, 3]
        >>> counts("uniform", [(5,), (3,), (5,)], 6 / 13, caps=[3, 1, 3])  # not [2, 2, 2]
        [3, 1, 2]
    """
    sizes = _sizes(shapes)
    ideal = _ideal(distribution, shapes, density)
    if callable(distribution):  # its own counts are the budget
        budget = sum(round(share * size) for share, size in zip(ideal, sizes, strict=True))
    else:
        budget = _budget(density, sizes)
    return allocate(ideal, sizes, budget, caps)


def allocate(
    densities: Sequence[float],
    sizes: Sequence[int],
    budget: int,
    caps: Sequence[int] | None = None,
) -> list[int]:
    """Whole numbers of weights that add up to the budget, by largest remainder.

    Every layer gets ``floor(density * size)``; what is left goes, one by one, to the layers with
    the largest remainder, the earlier layer first among equals. A layer that would get nothing
    gets one weight of the largest layer, with a warning.

    Largest remainders are not monotone: with a smaller budget a layer can get more. A schedule
    that only prunes passes its present counts as ``caps``; no layer then grows, and the remainder
    goes to the others.

    Args:
        densities: ideal density of every layer, in [0, 1].
        sizes: number of entries of every layer.
        budget: total number of active weights, at least the sum of the floors.
        caps: the most each layer may get; default its size.

    Returns:
        One count per layer; together ``budget``, or less where the caps leave no more room.

    Raises:
        ValueError: if the lengths differ or the densities ask for more than the budget.

    Example:
        >>> allocate([0.5, 0.5, 0.5], [5, 3, 5], budget=7)
        [3, 2, 2]
        >>> allocate([0.1, 0.1, 0.1], [5, 3, 5], budget=2, caps=[5, 3, 0])
        [1, 1, 0]
    """
    limits = _limits(densities, sizes, caps)
    wanted = [share * size for share, size in zip(densities, sizes, strict=True)]
    floors = [_floor(share) for share in wanted]
    active = [min(*pair) for pair in zip(floors, limits, strict=True)]
    left = min(budget, sum(limits)) - sum(active)
    if left < 0:
        raise ValueError(
            f"budget={budget} is less than the {sum(active)} weights that the densities ask for; "
            "pass densities whose share of the sizes adds up to the budget"
        )
    # rounded, so that float noise does not decide between equal remainders
    remainders = [round(share - floor, 9) for share, floor in zip(wanted, floors, strict=True)]
    hand_out(active, limits, remainders, left)
    return _keep_one_each(active, limits, sizes)


def check_sparsity(sparsity: float, name: str = "sparsity") -> float:
    """The sparsity as a float, or an error that says what is wrong with it.

    Args:
        sparsity: fraction of weights that are zero, in [0, 1).
        name: what to call it in the error.

    Returns:
        ``float(sparsity)``.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it lies outside [0, 1); a percentage is told apart.

    Example:
        >>> check_sparsity(90)
        Traceback (most recent call last):
        ValueError: sparsity=90 must be in [0, 1): the fraction of weights that are zero; \
for 90 % write 0.9
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, numbers.Real):
        raise TypeError(
            f"{name}={sparsity!r} must be a number in [0, 1): the fraction of weights that are zero"
        )
    value = float(sparsity)
    if 0.0 <= value < 1.0:
        return value
    advice = f"; for {value:g} % write {value / 100:g}" if 1.0 < value < 100.0 else ""
    raise ValueError(
        f"{name}={sparsity} must be in [0, 1): the fraction of weights that are zero{advice}"
    )


def _ideal(distribution: Distribution, shapes: Shapes, density: float) -> list[float]:
    sizes = _sizes(shapes)
    if not density > 0.0:
        raise ValueError(f"density={density} must be above 0: the fraction of active weights")
    if callable(distribution):
        if density >= 1.0:
            return [1.0] * len(sizes)
        return _from_callable(distribution, shapes, sizes, 1.0 - density)
    score = _score_function(distribution)
    return _fill([score(shape) for shape in shapes], sizes, density)


def _from_callable(
    distribution: Callable[[Shapes, float], Sequence[int]],
    shapes: Shapes,
    sizes: list[int],
    sparsity: float,
) -> list[float]:
    if not isinstance(given := distribution(shapes, sparsity), Iterable):
        raise TypeError(f"the distribution gave {given!r}; return a list with one count per layer")
    given = list(given)
    if len(given) != len(sizes):
        raise ValueError(
            f"the distribution gave {len(given)} counts for {len(sizes)} layers; return one each"
        )
    for index, (count, size) in enumerate(zip(given, sizes, strict=True)):
        if not isinstance(count, numbers.Integral) or not 0 <= count <= size:
            raise ValueError(
                f"the distribution gave {count!r} for layer {index} of shape "
                f"{tuple(shapes[index])}; return a whole number from 0 to {size}"
            )
    return [int(count) / size if size else 0.0 for count, size in zip(given, sizes, strict=True)]


def _fill(scores: Sequence[float], sizes: Sequence[int], density: float) -> list[float]:
    """min(1, epsilon * score) with the one epsilon that meets the density: water-filling.

    The same as the loop of Evci et al. (2020), which makes layers dense until none passes 1.
    """
    if density >= 1.0:
        return [1.0] * len(sizes)
    room = density * sum(sizes)
    weighted = [score * size for score, size in zip(scores, sizes, strict=True)]
    order = sorted(range(len(sizes)), key=lambda layer: -scores[layer])
    shares = [1.0] * len(sizes)
    for position, layer in enumerate(order):
        open_layers = order[position:]
        epsilon = room / max(math.fsum(weighted[other] for other in open_layers), _TINY)
        if epsilon * scores[layer] <= 1.0:
            for other in open_layers:
                shares[other] = epsilon * scores[other]
            break
        room -= sizes[layer]  # dense; the others share the rest
    return shares


_TINY = 1e-300  # all layers empty: no division by zero


def _uniform_score(shape: Sequence[int]) -> float:
    return 1.0


def _er_score(shape: Sequence[int]) -> float:
    if len(shape) < 2:
        raise ValueError(
            f"shape {tuple(shape)} has no inputs and outputs: 'er' needs two dimensions or more; "
            "use 'erk' or 'uniform'"
        )
    return (shape[0] + shape[1]) / max(shape[0] * shape[1], 1)


def _erk_score(shape: Sequence[int], power: float = 1.0) -> float:
    if not math.isfinite(power):
        raise ValueError(f"power={power} must be a finite number: the exponent of sum / prod")
    return float((sum(shape) / max(math.prod(shape), 1)) ** power)


_SCORES: dict[str, Callable[[Sequence[int]], float]] = {
    "er": _er_score,
    "erk": _erk_score,
    "uniform": _uniform_score,
}


def _score_function(name: object) -> Callable[[Sequence[int]], float]:
    if isinstance(name, str) and name in _SCORES:
        return _SCORES[name]
    near = difflib.get_close_matches(str(name).lower(), _SCORES, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? Or " if near else ""
    raise ValueError(
        f"distribution={name!r} is not one of {', '.join(sorted(_SCORES))}; {hint}"
        "pass a callable (shapes, sparsity) -> counts"
    )


def _sizes(shapes: Shapes) -> list[int]:
    if not isinstance(shapes, Collection) or not all(isinstance(one, Iterable) for one in shapes):
        raise TypeError(f"shapes={shapes!r} must be a list of shapes, such as [(300, 784)]")
    for shape in shapes:
        if not all(isinstance(length, numbers.Integral) and length >= 0 for length in shape):
            raise ValueError(f"shape {tuple(shape)} must be made of whole numbers, none negative")
    return [int(math.prod(shape)) for shape in shapes]


def _floor(value: float) -> int:
    # 0.29 * 100 is 28.999999999999996; the second guard is for networks of billions of weights
    return math.floor(value + max(1e-9, value * 1e-15))


def _budget(density: float, sizes: Sequence[int]) -> int:
    return min(sum(sizes), _floor(density * sum(sizes) + 0.5))


def _limits(
    densities: Sequence[float], sizes: Sequence[int], caps: Sequence[int] | None
) -> list[int]:
    caps = list(sizes) if caps is None else caps
    if not len(densities) == len(sizes) == len(caps):
        raise ValueError(
            f"{len(densities)} densities, {len(sizes)} sizes and {len(caps)} caps; "
            "give one of each per layer"
        )
    return [min(*pair) for pair in zip(sizes, caps, strict=True)]


def hand_out(
    active: list[int], limits: Sequence[int], remainders: Sequence[float], left: int
) -> None:
    """One weight each in order of the remainder, round after round, full layers skipped."""
    order = sorted(range(len(active)), key=lambda layer: -remainders[layer])
    while left > 0:
        open_layers = [layer for layer in order if active[layer] < limits[layer]]
        rounds = max(1, left // len(open_layers))  # whole rounds at once
        for layer in open_layers[:left]:
            given = min(rounds, limits[layer] - active[layer])
            active[layer] += given
            left -= given


def _keep_one_each(active: list[int], limits: Sequence[int], sizes: Sequence[int]) -> list[int]:
    empty = [layer for layer, limit in enumerate(limits) if limit and not active[layer]]
    if not empty:
        return active
    largest_first = sorted(range(len(sizes)), key=lambda layer: -sizes[layer])
    added = 0
    for layer in empty:
        donor = next((other for other in largest_first if active[other] > 1), None)
        if donor is None:
            added += 1
        else:
            active[donor] -= 1
        active[layer] = 1
    _warn_about_empty(empty, added)
    return active


def _warn_about_empty(empty: list[int], added: int) -> None:
    taken = (
        f"the whole network keeps {added} more than asked"
        if added
        else "they are taken from the largest layer"
    )
    warnings.warn(
        f"the density leaves no weight to {len(empty)} of the layers (positions "
        f"{', '.join(map(str, empty[:5]))}{', ...' if len(empty) > 5 else ''}); each keeps one, "
        f"{taken}. Use a lower sparsity or another distribution",
        UserWarning,
        stacklevel=4,
    )
