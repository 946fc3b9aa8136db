"""What becomes of terms in products and sums; and of any equation."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from .axes import KINKED, SMOOTH, Summed, Value, merge, require_alike, require_meeting, stacked
from .orders import gather
from .patterns import elementwise, structural
from .terms import SPECTRAL, Node, Term, times


def _dot_general(eqn: Any, operands: list[Value], batch: tuple[int, ...]) -> Term | Summed | None:
    (contracted, batched) = eqn.params["dimension_numbers"]
    dtype = eqn.outvars[0].aval.dtype
    operation = functools.partial(eqn.primitive.bind, **eqn.params)
    labels = [list(x.term.axes) if x.term is not None else [None] * len(x.shape) for x in operands]
    axes = [merge(labels[0][i], labels[1][j]) for i, j in zip(*batched, strict=True)]
    for side in (0, 1):
        gone = set(contracted[side]) | set(batched[side])
        axes += [label for i, label in enumerate(labels[side]) if i not in gone]
    axes = tuple(axes)
    pairs = list(zip(*contracted, strict=True))
    spectral = [(labels[0][i], labels[1][j]) for i, j in pairs]

    terms = [x.term for x in operands if x.term is not None]
    if any(term.modulus for term in terms):
        return None
    if len(terms) == 1:
        side = 0 if operands[0].term is not None else 1
        term, other = terms[0], operands[1 - side]
        if not term.factors or axes.count(SPECTRAL) != 1:
            return None
        if SPECTRAL in [labels[side][i] for i in batched[side]]:
            return None
        return term.after(
            operation if side == 0 else lambda x, y: operation(y, x), other.array, axes=axes
        )

    one, two = terms
    require_alike(one, two)
    met = [(labels[0][i], labels[1][j]) for i, j in [*pairs, *zip(*batched, strict=True)]]
    require_meeting(met, stacked(batch))
    elementwise, constants = times(one, two)
    arrays = []  # the operands for f = 1
    for term, x in zip(terms, operands, strict=True):
        # Ones that vary over a mesh as the array does, which may hold NaN.
        ones = (jnp.isnan(x.array) | True).astype(x.array.dtype)
        if term.diagonal:
            ones *= jnp.eye(x.shape[-1], dtype=x.array.dtype)
        arrays.append(term.node if term.factors else ones)
    if any(term.diagonal for term in terms) and (one.diagonal == two.diagonal or batch):
        return None  # the identity above is that of a single matrix
    node = None
    if one.factors or two.factors:
        node = Node(lambda x, y: operation(x, y).astype(dtype), tuple(arrays))
    product = one.replace(
        node=node,
        elementwise=elementwise,
        constants=constants,
        factors=one.factors + two.factors,
        axes=axes,
        diagonal=False,
    )
    if len(product.factors) > 2:
        return None
    if (SPECTRAL, SPECTRAL) in spectral:
        if one.diagonal or two.diagonal:
            return product if axes.count(SPECTRAL) == 1 else None
        if SPECTRAL in axes or not product.factors:
            return None
        return Summed(product)
    aligned = [(labels[0][i], labels[1][j]) for i, j in zip(*batched, strict=True)]
    if (SPECTRAL, SPECTRAL) in aligned and axes.count(SPECTRAL) == 1:
        return product if product.factors or not pairs else None
    return None


def _reduce_sum(eqn: Any, operands: list[Value], batch: tuple[int, ...]) -> Term | Summed | None:
    (x,), axes = operands, eqn.params["axes"]
    term, aval = x.known(), eqn.outvars[0].aval
    if term.modulus or term.diagonal or not jnp.issubdtype(aval.dtype, jnp.inexact):
        return None
    operation = functools.partial(eqn.primitive.bind, **eqn.params)
    left = tuple(label for i, label in enumerate(term.axes) if i not in axes)
    if term.factors:
        summed = term.after(operation, axes=left)
        return summed if SPECTRAL in left else Summed(summed)
    if SPECTRAL in left or jnp.issubdtype(aval.dtype, jnp.complexfloating):
        return None
    order = [label for label in left if label is not None]
    reduced = tuple(i for i in range(len(batch)) if i not in order)
    repeats = np.prod([x.shape[i] for i in axes if term.axes[i] is None], initial=1.0)
    sizes = tuple(1 if label is None else n for label, n in zip(left, aval.shape, strict=True))

    def finish(sums):
        sums = jnp.sum(sums, axis=reduced) * jnp.asarray(repeats, sums.dtype)
        sums = sums.transpose(np.argsort(np.argsort(order))).reshape(sizes)
        return jnp.broadcast_to(sums, aval.shape).astype(aval.dtype)

    return Summed(term, finish)


RULES = {name: elementwise for name in SMOOTH | KINKED | {"real", "imag", "conj"}}
RULES |= dict.fromkeys(
    ("transpose", "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "rev", "slice", "pad"),
    structural,
)
RULES |= {"dot_general": _dot_general, "reduce_sum": _reduce_sum}


def propagate(
    eqn: Any, operands: list[Value], batches: dict[int, tuple[int, ...]]
) -> Term | Summed | None:
    """Return what the result of an equation is, some operands of which are terms.

    Args:
        eqn: the equation.
        operands: its operands.
        batches: leading axes of each decomposed matrix.
    """
    if eqn.primitive.name == "gather" and operands[0].term is not None:
        try:
            return gather(eqn, operands)
        except LookupError:
            return None
    found = RULES.get(eqn.primitive.name)
    if found is None:
        return None
    index = next(x.term.index for x in operands if x.term is not None)
    try:
        return found(eqn, operands, batches[index])
    except LookupError:  # operands that do not fit together
        return None
