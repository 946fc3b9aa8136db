"""The derivatives of U f(S) V^H, right at repeated and zero singular values.

Derivation. Y = U f(S) V^H does not depend on the basis of a tied pair, so its derivative needs no
1/(s_j - s_i) alone, only divided differences of f. With the Hermitian dilation of A, whose
eigenvalues are +-s_i, Y is f applied to the dilation (f continued as an odd function), and the
theorem of Daleckii and Krein gives, with P = U^H dA V, f[x, y] = (f(x) - f(y))/(x - y):

    dY = U [D1 o herm P + D2 o skew P] V^H
         + (I - U U^H) dA V diag(q) V^H + U diag(q) U^H dA (I - V V^H)
    D1_ij = f[s_i, s_j],     D2_ij = f[s_i, -s_j],     q_i = f[s_i, 0]

The map is self-adjoint in Re tr(X^H Y): one formula serves as pushforward and as pullback. The
second derivative has second divided differences f[x, y, z] (see `SingularValues.second`).

The difference quotient loses eps/gap digits; for a pair closer than `near_tie` it is replaced by
two-point Gauss quadrature of f[x, y] = integral of f'(y + t (x - y)) over t in (0, 1).

A function with f(0) != 0 (polar: f = 1; pinv) has no odd continuation through 0: there D2 and q are
0 below `rank_tol`, which is the derivative at constant rank.

References: Noferini (2017), "A formula for the Frechet derivative of a generalized matrix
function", SIAM J. Matrix Anal. Appl. 38, theorem 3.2 (the first derivative); Higham (2008),
"Functions of Matrices", theorem 3.11 (Daleckii-Krein) and section 3.6.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from .. import _tolerances
from .._types import SVDResult
from ..algorithms.products import adjoint, adjoint_product, product
from .dense import herm, skew

ScalarFunction = Callable[[jax.Array], jax.Array]


class Scalar(NamedTuple):
    """An elementwise real function f with what the tables need to know of it.

    Attributes:
        f: acts on arrays of any shape of values >= 0 (any real ones for a Hermitian matrix).
        near_tie: relative gap below which quadrature replaces the difference quotient.
        drop_null: count f as 0 at zero singular values where f(0) != 0.
    """

    f: ScalarFunction
    near_tie: float
    drop_null: bool = False


def differentiate(f: ScalarFunction) -> ScalarFunction:
    """Return f' of an elementwise function, by forward mode."""
    return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]


class Tables:
    """Divided differences of f, continued as an odd function.

    Args:
        scalar: the function, given on s >= 0 and continued by f(-s) = -f(s).
        scale: largest magnitude of the spectrum, a scalar.
        zero: value below which a singular value counts as zero.
    """

    def __init__(self, scalar: Scalar, scale: jax.Array, zero: jax.Array):
        f = scalar.f
        df = differentiate(f)
        self.scalar, self.scale, self.zero = scalar, scale, zero
        self.jump = f(jnp.zeros_like(scale)) != 0  # true too for an infinite or undefined f(0)

        def value(x):
            # f(0) is subtracted at 0 alone: f' there is kept, and f = 1 gives sign(x).
            null = x == 0
            if scalar.drop_null:
                null |= self.jump & (jnp.abs(x) <= zero)
            return jnp.where(null, 0, jnp.sign(x) * f(jnp.abs(x)))

        self.value = value
        self.slope = lambda x: df(jnp.abs(x))
        self.curvature = lambda x: jnp.where(x < 0, -1, 1) * differentiate(df)(jnp.abs(x))

    def first(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Return f[x, y], elementwise on two arrays of one shape."""
        gap = x - y
        near = jnp.abs(gap) <= self.scalar.near_tie * (jnp.abs(x) + jnp.abs(y))
        # An infinite f(0) has no quotient at a computed zero.
        opposite = jnp.sign(x) * jnp.sign(y) <= 0
        dropped = self.jump & (jnp.abs(gap) <= self.zero) & opposite
        near &= ~dropped
        middle, half = (x + y) / 2, gap / (2 * 3**0.5)
        ends = self.value(jnp.stack([x, y]))
        slopes = self.slope(jnp.stack([middle + half, middle - half]))
        quotient = (ends[0] - ends[1]) / jnp.where(gap == 0, 1, gap)
        return jnp.where(dropped, 0, jnp.where(near, (slopes[0] + slopes[1]) / 2, quotient))

    def second(self, x: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
        """Return f[x, y, z], elementwise on three arrays of one shape."""
        low = jnp.minimum(jnp.minimum(x, y), z)
        high = jnp.maximum(jnp.maximum(x, y), z)
        middle = jnp.maximum(jnp.minimum(x, y), jnp.minimum(jnp.maximum(x, y), z))
        spread = high - low
        of_pair, of_scale = _tolerances.near_triple(x.dtype)
        largest = jnp.maximum(jnp.abs(low), jnp.abs(high))
        near = spread <= jnp.maximum(of_pair * largest, of_scale * self.scale)
        pairs = self.first(jnp.stack([middle, low]), jnp.stack([high, middle]))
        total = low + middle + high
        nodes = jnp.stack([total + 3 * low, total + 3 * middle, total + 3 * high]) / 6
        # Three-point quadrature over the triangle of convex combinations, area 1/2.
        quadrature = jnp.sum(self.curvature(nodes), axis=0) / 6
        return jnp.where(near, quadrature, (pairs[0] - pairs[1]) / jnp.where(near, 1, spread))


class Kind(Protocol):
    """What differs between a matrix function of the SVD and one of the eigendecomposition."""

    def tables(self, W, scalar: Scalar, shape: tuple[int, ...]) -> Any:
        """Return the divided differences for the numbers W of a matrix of ``shape``."""
        ...

    @staticmethod
    def values(W) -> jax.Array:
        """Return the singular values or eigenvalues."""
        ...

    def value(self, W, tables: Any) -> jax.Array:
        """Return the matrix function itself."""
        ...

    def first(self, W, tables: Any, E: jax.Array) -> jax.Array:
        """Return its derivative in the direction E."""
        ...

    def second(self, W, tables: Any, E: jax.Array, F: jax.Array) -> jax.Array:
        """Return its second derivative in the directions E and F."""
        ...


class SingularValues:
    """U f(S) V^H; W is the thin SVD of the matrix."""

    @staticmethod
    def tables(W: SVDResult, scalar: Scalar, shape: tuple[int, ...]) -> Tables:
        """Return the divided differences of f continued as an odd function."""
        S = W.S
        return Tables(scalar, S[0], _tolerances.rank_tol(S.dtype, *shape) * S[0])

    @staticmethod
    def values(W: SVDResult) -> jax.Array:
        """Return the singular values."""
        return W.S

    @staticmethod
    def spectrum(S: jax.Array) -> jax.Array:
        """Return S with zeros lifted to the smallest normal number.

        A null singular value stands on the positive side of the odd continuation, where it takes
        f(0) as the matrix function itself does; the point 0 of the tables is the outside of U, V.
        """
        return jnp.maximum(S, jnp.finfo(S.dtype).tiny)

    @classmethod
    def value(cls, W: SVDResult, tables: Tables) -> jax.Array:
        """Return U f(S) V^H."""
        U, S, Vh = W
        f = tables.value(S) if tables.scalar.drop_null else tables.scalar.f(S)
        return product(U * f[None, :].astype(U.dtype), Vh)

    @classmethod
    def first(cls, W: SVDResult, tables: Tables, E: jax.Array) -> jax.Array:
        """Return dY of the module's derivation; four products of m n k."""
        U, S, Vh = W[0], cls.spectrum(W[1]), W[2]
        m, n, k = U.shape[0], Vh.shape[1], S.shape[0]
        V = adjoint(Vh)
        x = jnp.broadcast_to(S[:, None], (k, k))
        y = jnp.broadcast_to(S[None, :], (k, k))
        D1, D2 = tables.first(jnp.stack([x, x]), jnp.stack([y, -y])).astype(U.dtype)
        q = tables.first(S, 0 * S).astype(U.dtype)
        EV = product(E, V)
        P = adjoint_product(U, EV)
        left = product(U, D1 * herm(P) + D2 * skew(P))
        if m > k:
            left = left + (EV - product(U, P)) * q[None, :]
        dY = product(left, Vh)
        if n > k:
            rest = adjoint_product(U, E) - product(P, Vh)
            dY = dY + product(U * q[None, :], rest)
        return dY

    @classmethod
    def second(cls, W: SVDResult, tables: Tables, E: jax.Array, F: jax.Array) -> jax.Array:
        r"""Return D^2 f[E, F] in the thin form.

        With P = U^H E V, R = U^H F V, E_u = (I - U U^H) E V, E_v = (I - V V^H) E^H U, F_u and F_v
        alike, and g = f[., ., .] of the odd continuation,

            a = g(s_i, s_l, s_j)   b = g(s_i, s_l, -s_j)   c = g(s_i, -s_l, s_j)
            d = g(-s_i, s_l, s_j)
            M_ij = 1/4 sum_l [ (a+b-c+d) P_il R_lj       + (a-b+c+d) P_il conj(R_jl)
                             + (a+b+c-d) conj(P_li) R_lj + (a-b-c-d) conj(P_li R_jl) ]
            z+- = (g(s_i, 0, s_j) +- g(s_i, 0, -s_j)) / 2
            M  += z+ o (E_u^H F_u) + z- o (E_v^H F_v)
            sum over both orders of (E, F) of
                U M V^H + E_u (z+ o R + z- o R^H) V^H + U (z- o P + z+ o P^H) F_v^H

        It is the second derivative of f of the Hermitian dilation, in the blocks of its
        eigenvectors [U U; V -V]/sqrt(2), with those outside their range gathered in E_u and E_v.
        """
        U, S, Vh = W[0], cls.spectrum(W[1]), W[2]
        V = adjoint(Vh)
        k, dtype = S.shape[0], U.dtype

        def parts(X):
            XV = product(X, V)
            P = adjoint_product(U, XV)
            return P, XV - product(U, P), adjoint_product(X, U) - product(V, adjoint(P))

        (P, E_u, E_v), (R, F_u, F_v) = parts(E), parts(F)
        x = jnp.broadcast_to(S[:, None], (k, k))
        y = jnp.broadcast_to(S[None, :], (k, k))

        def add_middle(M, column):
            s_l, P_l, Pl_, R_l, Rl_ = column  # P[:, l], P[l, :], R[:, l], R[l, :]
            z = jnp.broadcast_to(s_l, (k, k))
            a, b, c, d = tables.second(
                jnp.stack([x, x, x, -x]), jnp.stack([z, z, -z, z]), jnp.stack([y, -y, y, y])
            ).astype(dtype)
            for (row, row_c), (col, col_c) in (
                ((P_l, jnp.conj(Pl_)), (Rl_, jnp.conj(R_l))),
                ((R_l, jnp.conj(Rl_)), (Pl_, jnp.conj(P_l))),
            ):
                M = (
                    M
                    + (
                        (a + b - c + d) * row[:, None] * col[None, :]
                        + (a - b + c + d) * row[:, None] * col_c[None, :]
                        + (a + b + c - d) * row_c[:, None] * col[None, :]
                        + (a - b - c - d) * row_c[:, None] * col_c[None, :]
                    )
                    / 4
                )
            return M, None

        # One middle index at a time: memory k^2, and one table in the compiled program.
        M, _ = lax.scan(add_middle, jnp.zeros_like(P), (S, P.mT, P, R.mT, R))
        zero = 0 * x
        g = tables.second(jnp.stack([x, x]), jnp.stack([zero, zero]), jnp.stack([y, -y]))
        plus, minus = ((g[0] + g[1]) / 2).astype(dtype), ((g[0] - g[1]) / 2).astype(dtype)
        EF_u, EF_v = adjoint_product(E_u, F_u), adjoint_product(E_v, F_v)
        M = M + plus * (EF_u + adjoint(EF_u)) + minus * (EF_v + adjoint(EF_v))

        def right(P):
            return plus * P + minus * adjoint(P)

        def left(P):
            return minus * P + plus * adjoint(P)

        rows = product(U, M) + product(E_u, right(R)) + product(F_u, right(P))
        return (
            product(rows, Vh)
            + product(product(U, left(P)), adjoint(F_v))
            + product(product(U, left(R)), adjoint(E_v))
        )


def spectral_pushforward(
    result: SVDResult, f: ScalarFunction, dA: jax.Array, *, near_tie: float | None = None
) -> jax.Array:
    """Return dY for Y = U f(S) V^H in the direction dA, (m, n); see the module's derivation.

    Args:
        result: the thin SVD of A: U (m, k), S (k,), Vh (k, n), k = min(m, n).
        f: elementwise function of values >= 0.
        dA: tangent of the matrix, (m, n).
        near_tie: relative gap below which quadrature replaces the difference quotient; default
            eps^(1/5) / 2.

    Returns:
        The tangent of U f(S) V^H, (m, n).
    """
    if near_tie is None:
        near_tie = _tolerances.near_tie(result.S.dtype)
    tables = SingularValues.tables(result, Scalar(f, near_tie), dA.shape)
    return SingularValues.first(result, tables, dA)


def spectral_pullback(
    result: SVDResult, f: ScalarFunction, cotangent: jax.Array, *, near_tie: float | None = None
) -> jax.Array:
    """Return the cotangent of A for Y = U f(S) V^H: the same map, in JAX's convention, (m, n)."""
    return jnp.conj(spectral_pushforward(result, f, jnp.conj(cotangent), near_tie=near_tie))
