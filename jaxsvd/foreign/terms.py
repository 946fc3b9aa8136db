"""What a value in a traced function is as a function of singular triplets or eigenpairs.

A `Term` says of an array: entry by entry along one axis, its spectral axis, it is

    f(s_i)                          a function of the values alone           no factor
    f(s_i) L(u_i)                   linear in one vector of each triplet     one factor
    f(s_i) B(u_i, v_i)              bilinear in two                          two factors

with L and B made of operations on the other axes. Once a term with two factors (or none) is summed
over the spectral axis, the sum is a function of U f(S) V^H (of sum_i f(s_i)) alone. That has a
derivative at ties, which the parts have not, and `Sum` is the program that evaluates it.

A term is a pytree, so that it passes into and out of a nested `jit` with the array it describes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..primitives.foreign import Elementwise, Source, columns, summed

SPECTRAL = -1  # label of a spectral axis; batch axes have the labels 0, 1, ...; others None

Label = int | None


class Window(NamedTuple):
    """The part start <= i < stop of the spectrum, in reversed order or not.

    Attributes:
        start: first index.
        stop: last index + 1.
        reversed: whether it runs backwards.
        order: the permutation it is in, see `orders`; None for its own order.
    """

    start: int
    stop: int
    reversed: bool = False
    order: Any = None

    @property
    def size(self) -> int:
        """Return how many values are in it."""
        return self.stop - self.start

    def cut(self, start: int, stop: int) -> "Window":
        """Return the part of it at the positions start <= i < stop."""
        if self.order is not None and (start, stop) != (0, self.size):
            raise LookupError  # which values these are is not known before they are
        if self.reversed:
            return self._replace(start=self.stop - stop, stop=self.stop - start)
        return self._replace(start=self.start + start, stop=self.start + stop)

    def flipped(self) -> "Window":
        """Return it in the other order."""
        return self._replace(reversed=not self.reversed)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("arguments",),
    meta_fields=("operation",),
)
@dataclasses.dataclass(frozen=True)
class Node:
    """An operation of the traced function that leads from factors to a term.

    Attributes:
        operation: (*arguments) -> array; None for a factor itself.
        arguments: arrays, which are differentiated, and other nodes.
    """

    operation: Callable | None
    arguments: tuple[Any, ...] = ()

    def run(self, factors: list[jax.Array]) -> jax.Array:
        """Return the array for other factors in place of U, Vh, Q, taken from the list's front."""
        if self.operation is None:
            return factors.pop(0)
        arguments = [x.run(factors) if isinstance(x, Node) else x for x in self.arguments]
        return self.operation(*arguments)


class Factor(NamedTuple):
    """One of the vectors that a term is linear in: the array it comes from, conjugated or not."""

    slot: str
    conjugated: bool


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("constants", "node"),
    meta_fields=("index", "elementwise", "axes", "window", "factors", "diagonal", "modulus"),
)
@dataclasses.dataclass(frozen=True)
class Term:
    """What is known of an array; see the module.

    Attributes:
        constants: what f closes over, each of the shape of the batch.
        node: the array for f = 1 as a function of the factors; None without factors.
        index: which decomposition of the traced function it is.
        elementwise: f.
        axes: a label for each axis of the array.
        window: the part of the spectrum along the spectral axis.
        factors: the vectors it is linear in, in the order in which the node takes them.
        diagonal: the array is diag(f(s)), both axes of it spectral.
        modulus: the array is the absolute value of the term.
    """

    constants: tuple[jax.Array, ...]
    node: Node | None
    index: int
    elementwise: Elementwise
    axes: tuple[Label, ...]
    window: Window
    factors: tuple[Factor, ...] = ()
    diagonal: bool = False
    modulus: bool = False

    @property
    def axis(self) -> int:
        """Return the spectral axis."""
        return self.axes.index(SPECTRAL)

    def replace(self, **changes: Any) -> "Term":
        """Return a term that differs in some attributes."""
        return dataclasses.replace(self, **changes)

    def after(self, operation: Callable, *arguments: Any, **changes: Any) -> "Term":
        """Return the term of operation(array, *arguments), linear in the array."""
        node = None if self.node is None else Node(operation, (self.node, *arguments))
        return self.replace(node=node, **changes)


def identity(s: jax.Array) -> jax.Array:
    """Return s."""
    return s


IDENTITY = Elementwise(identity, False)
ONE = Elementwise(jnp.ones_like, False)


def combine(
    operation: Callable, parts: list["Term | jax.Array"], kinked: bool
) -> tuple[Elementwise, tuple[jax.Array, ...]]:
    """Return f and constants of operation(*parts) from terms without factors and constants."""
    counts = [len(part.constants) if isinstance(part, Term) else 1 for part in parts]
    functions = [part.elementwise if isinstance(part, Term) else None for part in parts]
    constants = tuple(
        c for part in parts for c in (part.constants if isinstance(part, Term) else (part,))
    )

    def f(s, *constants):
        values, rest = [], list(constants)
        for count, function in zip(counts, functions, strict=True):
            mine, rest = rest[:count], rest[count:]
            values.append(mine[0] if function is None else function.f(s, *mine))
        return operation(*values)

    kinked |= any(function.kinked for function in functions if function is not None)
    return Elementwise(f, kinked), constants


def times(one: Term, two: Term, divide: bool = False) -> tuple[Elementwise, tuple]:
    """Return f and constants of the product (quotient) of two terms."""

    def operation(x, y):
        return x / y if divide else x * y

    return combine(operation, [one, two], False)


def has_derivative(term: Term, source: Source) -> bool:
    """Return whether phases of the vectors cancel in the sum of a term over the spectrum."""
    if len(term.factors) != 2:
        return not term.factors and (term.window.start, term.window.stop) == (0, source.size)
    if not jnp.iscomplexobj(source.a):
        return term.window.stop <= source.size
    (one, c1), (two, c2) = term.factors
    # Vh holds conjugated vectors: U and Vh go together as they are, U and U as U and conj U.
    return term.window.stop <= source.size and (c1 == c2 if one != two else c1 != c2)


@dataclasses.dataclass(frozen=True)
class Sum:
    """The sum of a term over its spectral axis as a program of arrays, for `attach`.

    Attributes:
        structure: that of the pair (source, term), whose leaves the program takes.
        finish: what is left to do with the sums of a term without factors.
    """

    structure: Any
    finish: Callable[[jax.Array], jax.Array] | None = None

    def __call__(self, leaves: list[jax.Array]) -> jax.Array:
        """Return the sum."""
        source, term = self.structure.unflatten(leaves)
        if self.finish is not None:
            return self.finish(summed(source, term.elementwise, term.constants))
        slots = tuple(factor.slot for factor in term.factors)
        window = (term.window.start, term.window.stop)
        found = columns(source, slots, term.elementwise, term.constants, window)
        return term.node.run(found)


def rule(term: Term, source: Source) -> str:
    """Return the name of the rule that the sum of a term follows."""
    whole = (term.window.start, term.window.stop) == (0, source.size)
    if not term.factors:
        return "hermitian_sum" if source.hermitian else "spectral_sum"
    if whole and source.hermitian:
        return "hermitian_map"
    if whole and term.factors[0].slot != term.factors[1].slot:
        return "spectral_map"
    return "core_eigh" if source.hermitian else "core_svd"
