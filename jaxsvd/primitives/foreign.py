"""Derivatives for decompositions that other code has computed, by JAX's own primitives.

The values are those of the other code and stay as they are; `attach` gives them the derivative of
another program, which is evaluated only when one is asked for. The programs here are the rules of
this library at those numbers: raw triplets and eigenpairs, functions of the whole spectrum, of a
block of it, and sums over it. All take stacks of matrices, (..., m, n).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _tolerances
from .._types import EighResult, SVDResult
from ..algorithms.products import product
from ..operators.dense import Dense
from ..rules.hermitian import EigenvaluesToThirdOrder, from_triangle
from ..rules.spectral import Scalar, SingularValues
from .batching import power_of_two_scale, vmapped
from .core import core_triplets
from .eigenpairs import core_pairs
from .eigh import pairs
from .extreme import Config as EighConfig
from .extreme import Ritz as EighRitz
from .ruled import ruled
from .spectral import Constants, Function, frechet, total
from .svd import triplets
from .truncated import Config, Ritz


@ruled(static=(0,))
def attach(program: Callable, values: Any, arguments: Any) -> Any:
    """Return ``values`` bit for bit, with the derivative of program(arguments).

    The program returns arrays of the same shapes and dtypes; its own values are not used.
    """
    del program, arguments
    return values


@attach.defjvp
def _attach_jvp(program, primals, tangents):
    values, arguments = primals
    # The next order of derivative goes through `attach` again, and through the program's rules.
    _, tangent = jax.jvp(program, (arguments,), (tangents[1],))
    return attach(program, values, arguments), tangent


def with_own_rule(call: Callable, evaluate: Callable, arrays: list[jax.Array]) -> list[jax.Array]:
    """Return call(*arrays), of a custom_jvp function, with its rule evaluated in another way.

    Args:
        call: the function, returns a tuple; its derivative is asked of JAX, and so by its own rule.
        evaluate: (jaxpr of the rule, its arrays) -> results; what differentiates the rule again
            meets this evaluation.
        arrays: the arguments.
    """
    function = ruled()(call)

    @function.defjvp
    def _(primals, tangents):
        rule = jax.make_jaxpr(lambda p, t: jax.jvp(call, p, t))(primals, tangents)
        found = evaluate(rule, jax.tree.leaves((primals, tangents)))
        half = len(found) // 2
        return tuple(found[:half]), tuple(found[half:])

    return list(function(*arrays))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("a", "numbers"),
    meta_fields=("hermitian", "lower", "algorithm"),
)
@dataclasses.dataclass(frozen=True)
class Source:
    """A matrix that was decomposed.

    Attributes:
        a: the matrix, differentiable, (..., m, n).
        numbers: its SVDResult or EighResult, constants; None where vectors were not computed.
        hermitian: eigenpairs in place of singular triplets.
        lower: the triangle that was read, for eigenpairs.
        algorithm: the algorithm asked for.
    """

    a: jax.Array
    numbers: SVDResult | EighResult | None
    hermitian: bool
    lower: bool
    algorithm: Any

    @property
    def batch(self) -> tuple[int, ...]:
        """Return the leading axes."""
        return self.a.shape[:-2]

    @property
    def size(self) -> int:
        """Return how many singular values or eigenvalues there are."""
        return min(self.a.shape[-2:])

    def thin(self) -> Any:
        """Return the numbers, the thin ones of a full SVD; computed here if nobody did before."""
        if self.numbers is None:
            s, U, Vh = lax.linalg.svd_p.bind(
                lax.stop_gradient(self.a),
                full_matrices=False,
                compute_uv=True,
                subset_by_index=None,
                algorithm=self.algorithm,
            )
            return SVDResult(U, s, Vh)
        if isinstance(self.numbers, EighResult):
            return self.numbers
        U, S, Vh = self.numbers
        return SVDResult(U[..., : self.size], S, Vh[..., : self.size, :])

    def matrix(self) -> jax.Array:
        """Return the matrix as the decomposition reads it."""
        return from_triangle(self.a, lower=self.lower) if self.hermitian else self.a


class Elementwise(NamedTuple):
    """A function of one singular value or eigenvalue.

    Attributes:
        f: (value, *constants) -> number, all scalars.
        kinked: whether f has kinks (clip, thresholds): no quadrature across them.
    """

    f: Callable[..., jax.Array]
    kinked: bool


def _function(elementwise: Elementwise, constants: tuple[jax.Array, ...], dtype):
    """Return the recipe and constants that `frechet` and `total` take."""
    inexact = [jnp.issubdtype(c.dtype, jnp.inexact) for c in constants]
    near_tie = _tolerances.near_tie_kinked if elementwise.kinked else _tolerances.near_tie

    def apply(x, held):
        moving, fixed = iter(held.moving), iter(held.fixed)
        mine = [next(moving) if flag else next(fixed) for flag in inexact]
        scale = held.scale.astype(x.dtype)
        flat = jax.vmap(lambda s: elementwise.f(scale * s, *mine).astype(dtype))(x.reshape(-1))
        return flat.reshape(x.shape)

    moving = [c for c, flag in zip(constants, inexact, strict=True) if flag]
    fixed = [c for c, flag in zip(constants, inexact, strict=True) if not flag]
    held = Constants(moving, fixed, jnp.ones((), dtype))
    return Function("safe", apply, Scalar(lambda x: x, near_tie(dtype))), held


def _scaled(W: Any, scale: jax.Array) -> Any:
    if isinstance(W, EighResult):
        return W._replace(eigenvalues=W.eigenvalues / scale)
    return W._replace(S=W.S / scale)


def raw(source: Source) -> Any:
    """Return the triplets or eigenpairs as a function of the matrix, ties and zeros guarded."""
    matrix = source.matrix()

    def of_matrix(a, W):
        scale = power_of_two_scale(a)
        a, W = a / scale.astype(a.dtype), _scaled(W, scale)
        if source.hermitian:
            w, Q = pairs(a, W, None)
            return EighResult(scale * w, Q)
        U, S, Vh = triplets(a, W, None)
        return SVDResult(U, scale * S, Vh)

    W = source.thin() if source.numbers is None else source.numbers
    return vmapped(of_matrix, len(source.batch))(matrix, W)


def whole(source: Source, f: Elementwise, constants: tuple[jax.Array, ...]) -> jax.Array:
    """Return U f(S) V^H or Q f(w) Q^H, right at every tie and at zeros."""

    def of_matrix(a, W, constants):
        scale = power_of_two_scale(a)
        a, W = a / scale.astype(a.dtype), _scaled(W, scale)
        function, held = _function(f, constants, scale.dtype)
        kind = EigenvaluesToThirdOrder if source.hermitian else SingularValues
        return frechet(kind, function, held._replace(scale=scale), W, a, ())

    return vmapped(of_matrix, len(source.batch))(source.matrix(), source.thin(), constants)


def block(
    source: Source, f: Elementwise, constants: tuple[jax.Array, ...], window: tuple[int, int]
) -> tuple[jax.Array, ...]:
    """Return the factors of the triplets in a window and f of their core: U, F, Vh or Q, F.

    Exact where the window is apart from the rest, whatever is tied inside it; in value
    F = diag(f(s)), and the derivative is that of every product in which bases cancel.
    """
    start, stop = window
    k = stop - start
    kept = np.r_[start:stop, 0:start, stop : source.size]  # the window first

    def of_matrix(a, W, constants):
        scale = power_of_two_scale(a)
        A, W = Dense(a / scale.astype(a.dtype)), _scaled(W, scale)
        none = jnp.zeros((), scale.dtype)
        if source.hermitian:
            w, Q = W
            config = EighConfig(k, "LA", "full", 0.0, None, False, True)
            W = EighResult(w[kept], Q[:, kept])
            *factors, C = core_pairs(A, EighRitz(W, none), config)
            values = W.eigenvalues[:k]
        else:
            U, S, Vh = W
            config = Config(k, "full", 0.0, None, False)
            W = SVDResult(U[:, kept], S[kept], Vh[kept])
            U, C, Vh = core_triplets(A, Ritz(*W, none), config)
            factors, values = [U, Vh], W.S[:k]
        function, held = _function(f, constants, scale.dtype)
        # C is diagonal in value: its eigenvectors are known.
        eigen = values, jnp.eye(k, dtype=C.dtype) + 0 * scale.astype(C.dtype)
        F = frechet(EigenvaluesToThirdOrder, function, held._replace(scale=scale), eigen, C, ())
        return *factors, F

    return vmapped(of_matrix, len(source.batch))(source.matrix(), source.thin(), constants)


def summed(source: Source, f: Elementwise, constants: tuple[jax.Array, ...]) -> jax.Array:
    """Return sum_i f(s_i) of each matrix, with a Hessian that is right at ties."""

    def of_matrix(a, W, constants):
        scale = power_of_two_scale(a)
        function, held = _function(f, constants, scale.dtype)
        kind = EigenvaluesToThirdOrder if source.hermitian else SingularValues
        return total(kind, function, held._replace(scale=scale), _scaled(W, scale), a)

    return vmapped(of_matrix, len(source.batch))(source.matrix(), source.thin(), constants)


def columns(
    source: Source,
    slots: tuple[str, str],
    f: Elementwise,
    constants: tuple[jax.Array, ...],
    window: tuple[int, int],
) -> list[jax.Array]:
    """Return X_1, X_2 to stand for the arrays in two slots, with f(s_i) taken into the first.

    For every bilinear B, sum_i f(s_i) B(u_i, v_i) = sum_i B(X_1i, X_2i) with the right derivative:
    the sum depends on sum_i f(s_i) u_i v_i^H alone.

    Args:
        source: the decomposed matrix.
        slots: of each factor, "U" (..., m, k), "Vh" (..., k, n) or "Q" (..., n, n).
        f: the function.
        constants: its constants, each of the shape of the batch.
        window: first and last + 1 index i of the sum.
    """
    m, n = source.a.shape[-2:]
    everything = window == (0, source.size)
    if everything and source.hermitian:
        return [whole(source, f, constants), _identity(source, n)]
    if everything and slots[0] != slots[1]:
        Y = whole(source, f, constants)
        U, Vh = (Y, _identity(source, n)) if m >= n else (_identity(source, m), Y)
        found = [U if slot == "U" else Vh for slot in slots]
        return [_padded(source, slot, X, window) for slot, X in zip(slots, found, strict=True)]
    *factors, F = block(source, f, constants, window)
    names = ("Q",) if source.hermitian else ("U", "Vh")
    by_slot: dict[str, jax.Array] = dict(zip(names, factors, strict=True))
    first, second = (by_slot[slot] for slot in slots)
    # sum_ij u_i F_ij v_j^H: F stands on the right of U, and of V; Vh holds rows.
    first = product(F, first) if slots[0] == "Vh" else product(first, F)
    return [
        _padded(source, slot, X, window) for slot, X in zip(slots, (first, second), strict=True)
    ]


def _identity(source: Source, n: int) -> jax.Array:
    # 0 * a: under shard_map it must vary over the mesh as the matrix does.
    varying = 0 * lax.stop_gradient(source.a[..., :1, :1])
    return jnp.broadcast_to(jnp.eye(n, dtype=source.a.dtype) + varying, (*source.batch, n, n))


def _padded(source: Source, slot: str, X: jax.Array, window: tuple[int, int]) -> jax.Array:
    """Return columns (rows of Vh) padded by zeros to the size of the array in the slot."""
    axis = -2 if slot == "Vh" else -1
    numbers = source.thin() if source.numbers is None else source.numbers
    size = numbers[{"U": 0, "Vh": 2, "Q": 1}[slot]].shape[axis]
    if X.shape[axis] == size:
        return X
    before, widths = window[0], [(0, 0)] * X.ndim
    widths[axis] = (before, size - before - X.shape[axis])
    return jnp.pad(X, widths)
