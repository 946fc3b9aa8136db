"""Spectra that are sorted: `argsort`, then indexing by what it returns.

A sum over the spectrum does not depend on its order, so a permutation is harmless as long as all
that meets is in the same order. An index array is known to be a permutation if it comes from
`sort` (of anything that runs along the spectrum, with 0, 1, ... beside it); JAX's own treatment of
negative indices, select(i < 0, i + n, i), is seen through.
"""

import itertools
from typing import Any, NamedTuple

import jax
import numpy as np

from .axes import Value
from .terms import SPECTRAL, Term

_numbers = itertools.count()


class Order(NamedTuple):
    """What an integer array is: the positions of a permutation, or made of them.

    Attributes:
        number: which permutation.
        reversed: it runs backwards.
        form: "index", "negative" (i < 0) or "shifted" (i + n).
    """

    number: int
    reversed: bool = False
    form: str = "index"


def sort(eqn: Any, operands: list[Value], arrays: list[jax.Array]) -> list[Value] | None:
    """Return the outputs of a sort along one spectral axis, or None if it is something else."""
    n = len(operands[0].shape) == 1 and operands[0].shape[0]
    terms = [x.term for x in operands if x.term is not None]
    if not n or eqn.params["dimension"] != 0 or any(term.factors for term in terms):
        return None
    if len({(term.index, term.window) for term in terms}) != 1 or terms[0].window.order:
        return None
    order, found = Order(next(_numbers)), []
    for x, array in zip(operands, arrays, strict=True):
        counted = None if x.term is not None else x.constant()
        if x.term is not None:
            window = x.term.window._replace(order=order)
            found.append(Value(array, x.term.replace(window=window)))
        elif counted is not None and np.array_equal(counted, np.arange(n)):
            found.append(Value(array, order=order))
        else:
            found.append(Value(array))
    return found


def of_index(eqn: Any, operands: list[Value]) -> Order | None:
    """Return what an equation makes of positions."""
    name = eqn.primitive.name
    orders = [x.order for x in operands]
    first = orders[0] if orders else None
    if first is None or first.form != "index":
        if name == "select_n" and len(orders) == 3 and first is not None:
            _, same, shifted = orders
            wanted = first._replace(form="index"), first._replace(form="shifted")
            if first.form == "negative" and (same, shifted) == wanted:
                return same
        return None
    if name in ("convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "copy"):
        sizes = [n for n in eqn.outvars[0].aval.shape if n != 1]
        return first if sizes == [n for n in operands[0].shape if n != 1] else None
    if name == "rev":
        return first._replace(reversed=not first.reversed)
    if name in ("lt", "add"):
        number = operands[1].constant()
        wanted = 0 if name == "lt" else max(operands[0].shape)
        if number is not None and number.size == 1 and number.item() == wanted:
            return first._replace(form="negative" if name == "lt" else "shifted")
    return None


def gather(eqn: Any, operands: list[Value]) -> Term:
    """Return the term of a gather that puts the spectrum of another in order, or raise."""
    x, index = operands
    term, numbers = x.known(), eqn.params["dimension_numbers"]
    sizes, ndim = list(eqn.params["slice_sizes"]), len(x.shape)
    if index.order is None or index.order.form != "index" or term.diagonal or term.modulus:
        raise LookupError
    axis = term.axis
    window = term.window
    plain = (
        tuple(numbers.collapsed_slice_dims) == tuple(numbers.start_index_map) == (axis,)
        and not numbers.operand_batching_dims
        and sizes == [1 if i == axis else n for i, n in enumerate(x.shape)]
        and index.shape == (x.shape[axis], 1)
        and not (window.order or window.reversed)
    )
    if not plain:
        raise LookupError
    others = iter([label for label in term.axes if label != SPECTRAL])
    axes = tuple(next(others) if i in numbers.offset_dims else SPECTRAL for i in range(ndim))

    def operation(array, index):
        return eqn.primitive.bind(array, index, **eqn.params)

    # The flag of the window is that of its array; the order counts both.
    order = index.order._replace(reversed=False)
    window = window._replace(order=order, reversed=index.order.reversed)
    return term.after(operation, index.array, axes=axes, window=window)
