"""What becomes of terms in one equation of a traced function: a term, a sum, or nothing known."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .terms import SPECTRAL, Label, Node, Term, combine, times

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
    """

    def __init__(
        self,
        array: Any,
        term: Term | None = None,
        flat: frozenset[int] = frozenset(),
        constant: Callable[[], np.ndarray | None] = lambda: None,
    ):
        self.array, self.term, self.flat, self.constant = array, term, flat, constant

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
            axis for axis in range(len(shape)) if all(_flat(x, axis) for x in operands)
        )
    return frozenset()


def _flat(x: Value, axis: int) -> bool:
    return not x.shape or x.shape[axis] == 1 or axis in x.flat


def _merge(one: Label, two: Label) -> Label:
    if one is not None and two is not None and one != two:
        raise LookupError
    return two if one is None else one


def _labels(x: Value, shape: tuple[int, ...]) -> tuple[Label, ...]:
    """Return the labels of an operand that is broadcast to a shape."""
    if x.term is None or not x.shape:
        return (None,) * len(shape)
    return tuple(
        label if x.shape[axis] == shape[axis] else None for axis, label in enumerate(x.term.axes)
    )


def _alike(*terms: Term) -> None:
    """Raise unless the terms run over the same part of the same spectrum."""
    if len({(term.index, term.window) for term in terms}) > 1:
        raise LookupError


def _same_matrices(labels: list[Any], batch: tuple[int, ...]) -> None:
    """Raise unless each pairing of axes, (label, label, ...), keeps matrices of a stack apart.

    Every batch axis of every term must meet itself in the others, once.
    """
    for label in range(len(batch)):
        if [set(pair) for pair in labels if label in pair] != [{label}]:
            raise LookupError


def _constant(x: Value, axes: tuple[Label, ...], batch: tuple[int, ...]) -> jax.Array:
    """Return an operand as numbers of the shape of the batch, or raise if it is more than that."""
    if jnp.iscomplexobj(x.array):
        raise LookupError
    if not x.shape:
        return jnp.broadcast_to(x.array, batch)
    if not all(_flat(x, axis) for axis, label in enumerate(axes) if label in (None, SPECTRAL)):
        raise LookupError
    array = x.array
    for axis, label in reversed(list(enumerate(axes))):
        if label in (None, SPECTRAL):
            array = lax.index_in_dim(array, 0, axis, keepdims=False)
    order = [label for label in axes if label not in (None, SPECTRAL)]
    if sorted(order) != list(range(len(batch))):
        raise LookupError
    return jnp.broadcast_to(array.transpose(np.argsort(order)), batch)


def _diagonal(eqn: Any, operands: list[Value], shape: tuple[int, ...]) -> Term | None:
    """Return diag(f(s)) where values are multiplied by, or chosen by, an identity matrix."""
    name = eqn.primitive.name
    if name == "mul":
        terms = [x for x in operands if x.term is not None]
        others = [x for x in operands if x.term is None]
        if len(terms) != 1:
            return None
    elif name == "select_n" and len(operands) == 3 and operands[2].term is not None:
        zero = operands[1].constant()
        if zero is None or np.any(zero):
            return None
        terms, others = operands[2:], operands[:1]
    else:
        return None
    term = terms[0].known()
    if term.factors or term.diagonal:
        return None
    axes = _labels(terms[0], shape)
    if axes.count(SPECTRAL) != 1 or len(shape) < 2:
        return None
    k = term.window.size
    for axis in range(len(shape)):
        if axes[axis] is not None or shape[axis] != k:
            continue
        eye = others[0].constant()
        if eye is None or eye.ndim != len(shape):
            return None
        eye = np.moveaxis(eye, (axes.index(SPECTRAL), axis), (-2, -1))
        if eye.shape[-2:] == (k, k) and np.array_equal(eye, np.broadcast_to(np.eye(k), eye.shape)):
            labels = tuple(SPECTRAL if i == axis else label for i, label in enumerate(axes))
            return term.replace(axes=labels, diagonal=True)
    return None


def _elementwise(eqn: Any, operands: list[Value], batch: tuple[int, ...]) -> Term | None:
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    operation = functools.partial(eqn.primitive.bind, **eqn.params)
    if (diagonal := _diagonal(eqn, operands, shape)) is not None:
        return diagonal
    labels = [_labels(x, shape) for x in operands]
    axes = tuple(functools.reduce(_merge, column) for column in zip(*labels, strict=True))
    # A single value (s_1, say) that is broadcast along the spectrum is a constant for it.
    running = [SPECTRAL in mine for mine in labels]
    terms = [x.known() for x, runs in zip(operands, running, strict=True) if runs]
    _alike(*terms)
    if not terms or any(term.diagonal for term in terms):
        return None
    running_labels = [mine for mine, runs in zip(labels, running, strict=True) if runs]
    _same_matrices(list(zip(*running_labels, strict=True)), batch)
    main = next((term for term in terms if term.factors), None)
    if any(term.modulus for term in terms) and name not in ("square", "integer_pow"):
        return None
    if main is None:
        if name in ("real", "conj") or (
            name == "convert_element_type"
            and jnp.issubdtype(eqn.params["new_dtype"], jnp.complexfloating)
        ):
            return terms[0].replace(axes=axes)  # a real function, whatever the dtype it is held in
        if name not in SMOOTH | KINKED or any(jnp.iscomplexobj(x.array) for x in operands):
            return None
        parts = [
            x.known() if runs else _constant(x, axes, batch)
            for x, runs in zip(operands, running, strict=True)
        ]
        elementwise, constants = combine(operation, parts, name in KINKED)
        return terms[0].replace(constants=constants, elementwise=elementwise, axes=axes)

    if name in ("neg", "copy", "convert_element_type"):
        if not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact):
            return None
        return main.after(operation)
    if name == "conj":
        flipped = tuple(f._replace(conjugated=not f.conjugated) for f in main.factors)
        return main.after(operation, factors=flipped)
    if name in ("real", "imag") and len(main.factors) == 2:
        return main.after(operation)
    if name == "abs" and len(main.factors) == 1:
        return main.replace(modulus=True)  # linear in nothing yet, but its square is a product
    if name == "square" or (name == "integer_pow" and eqn.params["y"] == 2):
        if len(main.factors) != 1:
            return None
        elementwise, constants = times(main, main)
        factor, product = main.factors[0], lax.mul
        other = factor
        if main.modulus and jnp.issubdtype(operands[0].array.dtype, jnp.floating):
            other = factor._replace(conjugated=not factor.conjugated)
            product = _real_product
        return main.replace(
            node=Node(product, (main.node, main.node)),
            factors=(factor, other),
            elementwise=elementwise,
            constants=constants,
            modulus=False,
        )
    if name not in ("mul", "div") or (name == "div" and main is not operands[0].term):
        return None
    if len(terms) == 1:
        other = next(x for x, runs in zip(operands, running, strict=True) if not runs)
        if not _flat(other, axes.index(SPECTRAL)):
            return None
        first = running[0]
        return main.after(
            operation if first else lambda x, y: operation(y, x), other.array, axes=axes
        )
    one, two = terms
    elementwise, constants = times(one, two, divide=name == "div")
    if one.factors and two.factors:
        if name == "div" or len(one.factors) + len(two.factors) > 2:
            return None
        node, factors = Node(operation, (one.node, two.node)), one.factors + two.factors
    else:
        node = Node(lambda x: jnp.broadcast_to(x, shape), (main.node,))
        factors = main.factors
    return main.replace(
        node=node, factors=factors, elementwise=elementwise, constants=constants, axes=axes
    )


def _real_product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.real(x * jnp.conj(y))


def _structural(eqn: Any, operands: list[Value], batch: tuple[int, ...]) -> Term | None:
    """Return the term of an operation that moves entries and computes nothing."""
    name, params, x = eqn.primitive.name, eqn.params, operands[0]
    term, shape = x.term, eqn.outvars[0].aval.shape
    if term is None or (len(operands) > 1 and name != "pad"):
        return None
    window, axes = term.window, list(term.axes)
    if name == "transpose":
        axes = [axes[i] for i in params["permutation"]]
    elif name == "broadcast_in_dim":
        labels, axes = axes, list[Label]([None] * len(shape))
        for i, axis in enumerate(params["broadcast_dimensions"]):
            if labels[i] is not None and x.shape[i] != shape[axis]:
                return None
            axes[axis] = labels[i]
    elif name in ("reshape", "squeeze", "expand_dims"):
        if params.get("dimensions") is not None and name == "reshape":
            return None
        long = [(size, label) for size, label in zip(x.shape, axes, strict=True) if size != 1]
        short = [label for size, label in zip(x.shape, axes, strict=True) if size == 1]
        if [size for size, _ in long] != [size for size in shape if size != 1] or any(
            label is not None for label in short
        ):
            return None
        labels = iter(label for _, label in long)
        axes = [next(labels) if size != 1 else None for size in shape]
    elif name == "rev":
        for axis in params["dimensions"]:
            if axes[axis] == SPECTRAL:
                window = window.flipped()
            elif axes[axis] is not None:
                return None
    elif name == "slice":
        if params["strides"] is not None and any(step != 1 for step in params["strides"]):
            return None
        bounds = zip(params["start_indices"], params["limit_indices"], strict=True)
        for axis, (start, stop) in enumerate(bounds):
            if axes[axis] == SPECTRAL:
                window = window.cut(start, stop)
            elif axes[axis] is not None and (start, stop) != (0, x.shape[axis]):
                return None
    elif name == "pad":
        if any(any(widths) for widths in params["padding_config"]):
            return None
    if term.modulus or (term.diagonal and name not in ("transpose", "pad")):
        return None
    arguments = [y.array for y in operands[1:]]
    operation = functools.partial(eqn.primitive.bind, **params)
    return term.after(operation, *arguments, axes=tuple(axes), window=window)


def _dot_general(eqn: Any, operands: list[Value], batch: tuple[int, ...]) -> Term | Summed | None:
    (contracted, batched) = eqn.params["dimension_numbers"]
    dtype = eqn.outvars[0].aval.dtype
    operation = functools.partial(eqn.primitive.bind, **eqn.params)
    labels = [list(x.term.axes) if x.term is not None else [None] * len(x.shape) for x in operands]
    axes = [_merge(labels[0][i], labels[1][j]) for i, j in zip(*batched, strict=True)]
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
    _alike(one, two)
    met = [(labels[0][i], labels[1][j]) for i, j in [*pairs, *zip(*batched, strict=True)]]
    _same_matrices(met, batch)
    elementwise, constants = times(one, two)
    arrays = []  # the operands for f = 1
    for term, x in zip(terms, operands, strict=True):
        ones = jnp.eye(x.shape[-1], dtype=x.array.dtype) if term.diagonal else 1
        arrays.append(term.node if term.factors else jnp.broadcast_to(ones, x.shape))
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


RULES = {name: _elementwise for name in SMOOTH | KINKED | {"real", "imag", "conj"}}
RULES |= dict.fromkeys(
    ("transpose", "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "rev", "slice", "pad"),
    _structural,
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
    found = RULES.get(eqn.primitive.name)
    if found is None:
        return None
    index = next(x.term.index for x in operands if x.term is not None)
    try:
        return found(eqn, operands, batches[index])
    except LookupError:  # operands that do not fit together
        return None
