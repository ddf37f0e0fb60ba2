"""Counts per operator: what fvcore lacks or gets wrong, and which operand can be a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Handle = Callable[[list[Any], list[Any]], Any]

# Operators that multiply and add, with the operands that can be a weight: (position, always).
# The weight of a convolution is always one; a factor of a plain product is one if no data go in.
PRODUCTS: dict[str, tuple[tuple[int, bool], ...]] = {
    "aten::_convolution": ((1, True),),
    "aten::_convolution_mode": ((1, True),),
    "aten::linear": ((1, True),),
    "aten::addmm": ((2, False), (1, False)),
    "aten::baddbmm": ((2, False), (1, False)),
    "aten::bmm": ((1, False), (0, False)),
    "aten::matmul": ((1, False), (0, False)),
    "aten::mm": ((1, False), (0, False)),
    "aten::mv": ((0, False), (1, False)),
    "aten::einsum": ((1, False),),
    "aten::scaled_dot_product_attention": (),
}

# "product": attention if both factors are activations, else linear.
KINDS: dict[str, str] = {
    **dict.fromkeys(PRODUCTS, "product"),
    "aten::_convolution": "conv",
    "aten::_convolution_mode": "conv",
    "aten::linear": "linear",
    "aten::scaled_dot_product_attention": "attention",
    "aten::adaptive_avg_pool2d": "pool",
    "aten::batch_norm": "norm",
    "aten::grid_sampler": "resize",
    "aten::group_norm": "norm",
    "aten::instance_norm": "norm",
    "aten::layer_norm": "norm",
    "aten::upsample_bilinear2d": "resize",
    "aten::upsample_nearest2d": "resize",
}

# fvcore passes over these without a word
SILENT = ("aten::clamp", "aten::clamp_", "aten::max", "aten::relu", "aten::relu_")

# shapes and copies that fvcore does not know: truly nothing to count
FREE = (
    "aten::alias",
    "aten::clone",
    "aten::dropout_",
    "aten::expand_as",
    "aten::feature_dropout",
    "aten::movedim",
    "aten::numpy_T",
    "aten::repeat",
    "aten::reshape_as",
    "aten::swapaxes",
    "aten::unflatten",
    "aten::view_as",
)


def handles(known: Mapping[str, Handle]) -> dict[str, Handle]:
    """fvcore's handles, with those it lacks (attention) or that fail for some shapes."""
    return {
        **known,
        "aten::_convolution_mode": _convolution_by_mode,
        "aten::baddbmm": _product_of(1),
        "aten::einsum": _einsum(known["aten::einsum"]),
        "aten::matmul": _product_of(0),  # fvcore's leaves out broadcast batches
        "aten::mv": _product_of(0),
        "aten::scaled_dot_product_attention": _attention,
    }


def _shape(value: Any) -> list[int]:
    sizes: list[int] = value.type().sizes()
    return sizes


def _product_of(position: int) -> Handle:
    """Multiply-adds of a matrix product: entries of the result x length of the shared dimension."""

    def product(inputs: list[Any], outputs: list[Any]) -> int:
        return math.prod(_shape(outputs[0])) * _shape(inputs[position])[-1]

    return product


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Queries x keys, then weights x values; causal masks save nothing here."""
    query, key, value = map(_shape, inputs[:3])
    positions = math.prod(query[:-1]) * key[-2]
    return positions * (query[-1] + value[-1])


def _convolution_by_mode(inputs: list[Any], outputs: list[Any]) -> dict[str, int]:
    """A convolution with padding="same" or "valid"."""
    output = _shape(outputs[0])
    return {"conv": output[0] * math.prod(output[2:]) * math.prod(_shape(inputs[1]))}


def _einsum(fallback: Handle) -> Handle:
    """Of two operands: the product of all index lengths. fvcore's own is rounded to four digits."""

    def einsum(inputs: list[Any], outputs: list[Any]) -> Any:
        terms = inputs[0].toIValue().replace(" ", "").split("->")[0].split(",")
        operands = list(inputs[1].node().inputs())
        if len(terms) != 2 or any("." in term for term in terms):
            return fallback(inputs, outputs)
        lengths: dict[str, int] = {}
        for term, operand in zip(terms, operands, strict=True):
            lengths.update(zip(term, _shape(operand), strict=True))
        return math.prod(lengths.values())

    return einsum
