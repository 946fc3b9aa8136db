"""Arrays with what is known of them, and the labels of their axes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .terms import SPECTRAL, Label, Term

KINKED = frozenset(
    "abs ceil clamp eq floor ge gt le lt max min ne round select_n sign".split()
)  # functions with kinks or steps
SMOOTH = frozenset(
    """acos acosh add and asin asinh atan atan2 atanh cbrt convert_element_type copy cos cosh
    digamma div erf erf_inv erfc exp exp2 expm1 integer_pow is_finite lgamma log log1p logistic mul
    neg not or pow rsqrt sin sinh sqrt square sub tan tanh xor""".split()
)


class Value:
    """An array of the traced function and what is known of it.

    Attributes:
        array: the array.
        term: what it is as a function of triplets, if it is one.
        flat: axes along which it is constant.
        constant: returns it as a NumPy array where it depends on no input, else None.
        order: the permutation it holds the positions of, see `orders`.
    """

    def __init__(
        self,
        array: Any,
        term: Term | None = None,
        flat: frozenset[int] = frozenset(),
        constant: Callable[[], np.ndarray | None] = lambda: None,
        order: Any = None,
    ):
        self.array, self.term, self.flat, self.constant = array, term, flat, constant
        self.order = order

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the array."""
        return np.shape(self.array)

    def known(self) -> Term:
        """Return the term, or raise if there is none."""
        if self.term is None:
            raise LookupError
        return self.term


class Summed(NamedTuple):
    """An array that is a term summed over its spectral axis.

    Attributes:
        term: with a node that leads to the array itself, if it has factors.
        finish: leads from the sums of a term without factors to the array.
    """

    term: Term
    finish: Callable[[jax.Array], jax.Array] | None = None


def flat_axes(eqn: Any, operands: list[Value]) -> frozenset[int]:
    """Return axes along which the result of an equation without terms is constant."""
    name = eqn.primitive.name
    shape = eqn.outvars[0].aval.shape
    if name == "broadcast_in_dim":
        kept = eqn.params["broadcast_dimensions"]
        source = dict(zip(kept, range(len(kept)), strict=True))
        x = operands[0]
        return frozenset(
            axis
            for axis in range(len(shape))
            if axis not in source or x.shape[source[axis]] == 1 or source[axis] in x.flat
        )
    if name in SMOOTH | KINKED and len(eqn.outvars) == 1:
        return frozenset(
            axis for axis in range(len(shape)) if all(is_flat(x, axis) for x in operands)
        )
    return frozenset()


def is_flat(x: Value, axis: int) -> bool:
    """Return whether an operand is constant along an axis of the result."""
    return not x.shape or x.shape[axis] == 1 or axis in x.flat


def merge(one: Label, two: Label) -> Label:
    """Return the label of two axes that meet, or raise if they have two."""
    if one is not None and two is not None and one != two:
        raise LookupError
    return two if one is None else one


def labels_of(x: Value, shape: tuple[int, ...]) -> tuple[Label, ...]:
    """Return the labels of an operand that is broadcast to a shape."""
    if x.term is None or not x.shape:
        return (None,) * len(shape)
    return tuple(
        label if x.shape[axis] == shape[axis] else None for axis, label in enumerate(x.term.axes)
    )


def require_alike(*terms: Term) -> None:
    """Raise unless the terms run over the same part of the same spectrum."""
    if len({(term.index, term.window) for term in terms}) > 1:
        raise LookupError


def require_meeting(met: list[Any], wanted: tuple[int, ...]) -> None:
    """Raise unless each wanted label meets itself, once.

    Args:
        met: for each pairing of axes of some terms, their labels (label, label, ...).
        wanted: labels; those of batch axes, so that the matrices of a stack are kept apart, and the
            spectral one where terms are multiplied entry by entry.
    """
    for label in wanted:
        if [set(pair) for pair in met if label in pair] != [{label}]:
            raise LookupError


def stacked(batch: tuple[int, ...]) -> tuple[int, ...]:
    """Return the labels of batch axes: all but those of size 1, which come and go."""
    return tuple(i for i, n in enumerate(batch) if n != 1)


def as_constant(x: Value, axes: tuple[Label, ...], batch: tuple[int, ...]) -> jax.Array:
    """Return an operand as numbers of the shape of the batch, or raise if it is more than that."""
    if jnp.iscomplexobj(x.array):
        raise LookupError
    if not x.shape:
        return jnp.broadcast_to(x.array, batch)
    if not all(is_flat(x, axis) for axis, label in enumerate(axes) if label in (None, SPECTRAL)):
        raise LookupError
    array = x.array
    for axis, label in reversed(list(enumerate(axes))):
        if label in (None, SPECTRAL):
            array = lax.index_in_dim(array, 0, axis, keepdims=False)
    order = [label for label in axes if label not in (None, SPECTRAL)]
    if tuple(sorted(order)) != stacked(batch):
        raise LookupError
    sizes = iter(array.transpose(np.argsort(order)).shape)
    array = array.transpose(np.argsort(order)).reshape(
        [1 if n == 1 else next(sizes) for n in batch]
    )
    return jnp.broadcast_to(array, batch)
