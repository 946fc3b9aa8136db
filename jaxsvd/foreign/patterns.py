"""What becomes of terms in operations on entries, and in those that move entries."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .axes import (
    KINKED,
    SMOOTH,
    Value,
    as_constant,
    is_flat,
    labels_of,
    merge,
    require_alike,
    require_meeting,
    stacked,
)
from .terms import SPECTRAL, Label, Node, Term, combine, times


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
    axes = labels_of(terms[0], shape)
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


def elementwise(eqn: Any, operands: list[Value], batch: tuple[int, ...]) -> Term | None:
    """Return the term of an operation on entries."""
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    operation = functools.partial(eqn.primitive.bind, **eqn.params)
    if (diagonal := _diagonal(eqn, operands, shape)) is not None:
        return diagonal
    labels = [labels_of(x, shape) for x in operands]
    axes = tuple(functools.reduce(merge, column) for column in zip(*labels, strict=True))
    # A single value (s_1, say) that is broadcast along the spectrum is a constant for it.
    running = [SPECTRAL in mine for mine in labels]
    terms = [x.known() for x, runs in zip(operands, running, strict=True) if runs]
    require_alike(*terms)
    if not terms or any(term.diagonal for term in terms):
        return None
    running_labels = [mine for mine, runs in zip(labels, running, strict=True) if runs]
    require_meeting(list(zip(*running_labels, strict=True)), (*stacked(batch), SPECTRAL))
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
            x.known() if runs else as_constant(x, axes, batch)
            for x, runs in zip(operands, running, strict=True)
        ]
        f, constants = combine(operation, parts, name in KINKED)
        return terms[0].replace(constants=constants, elementwise=f, axes=axes)

    if name in ("neg", "copy", "convert_element_type"):
        if not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact):
            return None
        return main.after(operation)
    if name == "conj":
        flipped = tuple(x._replace(conjugated=not x.conjugated) for x in main.factors)
        return main.after(operation, factors=flipped)
    if name in ("real", "imag") and len(main.factors) == 2:
        return main.after(operation)
    if name == "abs" and len(main.factors) == 1:
        return main.replace(modulus=True)  # linear in nothing yet, but its square is a product
    if name == "square" or (name == "integer_pow" and eqn.params["y"] == 2):
        if len(main.factors) != 1:
            return None
        f, constants = times(main, main)
        factor, product = main.factors[0], lax.mul
        other = factor
        if main.modulus and jnp.issubdtype(operands[0].array.dtype, jnp.floating):
            other = factor._replace(conjugated=not factor.conjugated)
            product = _real_product
        return main.replace(
            node=Node(product, (main.node, main.node)),
            factors=(factor, other),
            elementwise=f,
            constants=constants,
            modulus=False,
        )
    if name not in ("mul", "div") or (name == "div" and main is not operands[0].term):
        return None
    if len(terms) == 1:
        other = next(x for x, runs in zip(operands, running, strict=True) if not runs)
        if not is_flat(other, axes.index(SPECTRAL)):
            return None
        first = running[0]
        return main.after(
            operation if first else lambda x, y: operation(y, x), other.array, axes=axes
        )
    one, two = terms
    f, constants = times(one, two, divide=name == "div")
    if one.factors and two.factors:
        if name == "div" or len(one.factors) + len(two.factors) > 2:
            return None
        node, factors = Node(operation, (one.node, two.node)), one.factors + two.factors
    else:
        node = Node(lambda x: jnp.broadcast_to(x, shape), (main.node,))
        factors = main.factors
    return main.replace(node=node, factors=factors, elementwise=f, constants=constants, axes=axes)


def _real_product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.real(x * jnp.conj(y))


def structural(eqn: Any, operands: list[Value], batch: tuple[int, ...]) -> Term | None:
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
