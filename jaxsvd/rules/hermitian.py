"""The derivatives of Q f(w) Q^H for a Hermitian A = Q diag(w) Q^H, right at every tie.

Derivation (Daleckii and Krein). With P_E = Q^H E Q and the divided differences of f,

    Df[E]       = Q [ f[w_i, w_j] (P_E)_ij ] Q^H
    D2f[E, F]   = Q [ sum_l f[w_i, w_l, w_j] (P_E)_il (P_F)_lj + the other order ] Q^H
    D3f[E, F, G] = Q [ sum_lm f[w_i, w_l, w_m, w_j] (P_E)_il (P_F)_lm (P_G)_mj + five orders ] Q^H

A difference quotient loses eps/gap digits for each order; at a tie it does not exist. There it is
replaced by quadrature over the convex combinations t of the points (Hermite and Genocchi):

    f[x_0, .., x_n] = integral of f^(n)(t) over the simplex of t

Which of the two serves is decided entry by entry by an estimate of either's error, so that f may
vary on any scale: exp of a singular matrix has zeros of +-1e-17, whose quotient is noise although
they are far apart relative to each other; x^(-1/4) at 1e-6 needs the quotient where exp does not.

    quotient      rounding: eps (|f(x)| + |f(y)|) / |x - y|, and the same upwards through the orders
    quadrature    the distance d to the value Q at the centroid, of second order in the gap, times
                  |d/Q|^2 for Radon's rule on the triangle (degree five, so an error of sixth
                  order) and, on the safe side, for that of Gauss (degree nine); |d/Q| for the one
                  on the tetrahedron (degree three, fourth order)

A kink between the points of a quadrature goes unnoticed by its estimate. So beyond the small gaps
of `near_tie` quadrature serves only where the quotient agrees to within its own rounding.

References: Higham (2008), "Functions of Matrices", theorem 3.11 (Daleckii and Krein), appendix B.16
(Hermite and Genocchi); Higham and Relton (2014), "Higher order Frechet derivatives of matrix
functions and the level-2 condition number"; Radon (1948) (the rule on the triangle); Keast (1986)
(that on the tetrahedron).
"""

import jax
import jax.numpy as jnp
from jax import lax

from ..algorithms.products import adjoint, adjoint_product, product
from .spectral import Scalar, differentiate

Estimate = tuple[jax.Array, jax.Array]  # a value and an estimate of its error

# The rule of degree nine on an interval: 64/225 in the middle and, for both t, the weight at +-t.
GAUSS = tuple(
    ((5 + sign * 2 * (10 / 7) ** 0.5) ** 0.5 / 3, (322 - sign * 13 * 70**0.5) / 1800)
    for sign in (-1, 1)
)

# The rule of degree five on the triangle: 9/40 at the centroid and, for both t, the weight at the
# nodes (1 - 2t, t, t), (t, 1 - 2t, t), (t, t, 1 - 2t).
RADON = tuple(((6 + sign * 15**0.5) / 21, (155 + sign * 15**0.5) / 1200) for sign in (-1, 1))


class RealTables:
    """Divided differences of a function on the real line, of first to third order.

    Args:
        scalar: the function; quadrature serves gaps up to ``near_tie`` times the scale only (four
            and sixteen times that in the second and third order).
        scale: largest magnitude of the spectrum, a scalar.
    """

    def __init__(self, scalar: Scalar, scale: jax.Array):
        self.scalar, self.scale = scalar, scale
        self.value = scalar.f
        self.slope = differentiate(self.value)
        self.curvature = differentiate(self.slope)
        self.jerk = differentiate(self.curvature)

    def first(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Return f[x, y], elementwise on two arrays of one shape."""
        return self._first(x, y)[0]

    def second(self, x: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
        """Return f[x, y, z], elementwise on three arrays of one shape."""
        return self._second(*_sorted(x, y, z))[0]

    def third(self, x: jax.Array, y: jax.Array, z: jax.Array, u: jax.Array) -> jax.Array:
        """Return f[x, y, z, u], elementwise on four arrays of one shape."""
        return self._third(*_sorted(x, y, z, u))[0]

    def _first(self, x: jax.Array, y: jax.Array) -> Estimate:
        ends = self.value(jnp.stack([x, y]))
        rounding = jnp.finfo(x.dtype).eps * jnp.abs(ends)
        middle, half = (x + y) / 2, (x - y) / 2
        nodes = [middle + sign * t * half for t, _ in GAUSS for sign in (1, -1)]
        slopes = self.slope(jnp.stack([*nodes, middle]))
        (_, near), (_, far) = GAUSS
        mean = near * (slopes[0] + slopes[1]) + far * (slopes[2] + slopes[3])
        by_rule = self._quadrature(mean + 64 / 225 * slopes[4], slopes[4], 2)
        return self._choose(1, (ends[0], rounding[0]), (ends[1], rounding[1]), x - y, by_rule)

    def _second(self, low: jax.Array, middle: jax.Array, high: jax.Array) -> Estimate:
        values, errors = self._first(jnp.stack([middle, low]), jnp.stack([high, middle]))
        mean = (low + middle + high) / 3
        corners = jnp.stack([low, middle, high]) - mean[None]
        nodes = [mean[None] + (1 - 3 * t) * corners for t, _ in RADON]
        bends = self.curvature(jnp.concatenate([*nodes, mean[None]])) / 2
        (_, near), (_, far) = RADON
        value = near * jnp.sum(bends[:3], axis=0) + far * jnp.sum(bends[3:6], axis=0)
        by_rule = self._quadrature(value + 9 / 40 * bends[6], bends[6], 2)
        return self._choose(2, (values[0], errors[0]), (values[1], errors[1]), high - low, by_rule)

    def _third(self, low: jax.Array, second: jax.Array, third: jax.Array, high: jax.Array):
        values, errors = self._second(
            jnp.stack([second, low]), jnp.stack([third, second]), jnp.stack([high, third])
        )
        points = jnp.stack([low, second, third, high])
        mean = jnp.mean(points, axis=0)
        # The rule of degree three on the tetrahedron, of volume 1/6.
        nodes = mean[None] + (points - mean[None]) / 3
        bends = self.jerk(jnp.concatenate([nodes, mean[None]])) / 6
        average = (9 * jnp.sum(bends[:4], axis=0) - 16 * bends[4]) / 20
        by_rule = self._quadrature(average, bends[4], 1)
        return self._choose(3, (values[0], errors[0]), (values[1], errors[1]), high - low, by_rule)

    def _quadrature(self, value: jax.Array, centroid: jax.Array, power: int) -> Estimate:
        distance = jnp.abs(value - centroid)
        size = jnp.where(value == 0, 1, jnp.abs(value))
        error = (distance / size) ** power * distance
        return value, error + jnp.finfo(value.dtype).eps * jnp.abs(value)

    def _choose(self, order: int, one: Estimate, two: Estimate, gap, by_rule: Estimate) -> Estimate:
        """Return (one - two)/gap or the quadrature, whichever promises the smaller error."""
        tied = gap == 0
        limit = self.scalar.near_tie * 4 ** (order - 1)  # quotients of quotients lose more digits
        gap = jnp.where(tied, 1, gap)
        error = jnp.where(tied, jnp.inf, (one[1] + two[1]) / jnp.abs(gap))
        quotient = (one[0] - two[0]) / gap
        trusted = jnp.abs(gap) <= limit * self.scale
        trusted = trusted | (jnp.abs(quotient - by_rule[0]) <= error)
        near = tied | trusted & (by_rule[1] < error)
        return jnp.where(near, by_rule[0], quotient), jnp.where(near, by_rule[1], error)


def _sorted(*points: jax.Array) -> list[jax.Array]:
    """Return arrays of one shape sorted among each other, by exchanges: `sort` compiles long."""
    ordered = list(points)
    for end in range(len(ordered) - 1, 0, -1):
        for i in range(end):
            low, high = ordered[i], ordered[i + 1]
            ordered[i], ordered[i + 1] = jnp.minimum(low, high), jnp.maximum(low, high)
    return ordered


def from_triangle(a: jax.Array, *, lower: bool = True) -> jax.Array:
    """Return the Hermitian matrix whose lower (or upper) triangle is that of a, (..., n, n).

    Of the diagonal the real part is taken; the other triangle is not read.
    """
    a = a if lower else adjoint(a)
    below = jnp.tril(a, -1)
    diagonal = jnp.eye(a.shape[-1], dtype=bool)
    real = jnp.real(a).astype(a.dtype)
    return below + adjoint(below) + jnp.where(diagonal, real, jnp.zeros_like(a))


class Eigenvalues:
    """Q f(w) Q^H of a Hermitian matrix; W is (w, Q)."""

    @staticmethod
    def tables(W, scalar: Scalar, shape: tuple[int, ...]) -> RealTables:
        """Return the divided differences of f as it is on the whole real line."""
        del shape
        return RealTables(scalar, jnp.max(jnp.abs(W[0])))

    @staticmethod
    def values(W) -> jax.Array:
        """Return the eigenvalues."""
        return W[0]

    @staticmethod
    def value(W, tables: RealTables) -> jax.Array:
        """Return Q f(w) Q^H."""
        w, Q = W
        return product(Q * tables.value(w)[None, :].astype(Q.dtype), adjoint(Q))

    @staticmethod
    def first(W, tables: RealTables, E: jax.Array) -> jax.Array:
        """Return Q [f[w_i, w_j] o Q^H E Q] Q^H; four products of n^3."""
        w, Q = W
        k = w.shape[0]
        x = jnp.broadcast_to(w[:, None], (k, k))
        table = tables.first(x, x.mT).astype(Q.dtype)
        inner = table * adjoint_product(Q, product(E, Q))
        return product(product(Q, inner), adjoint(Q))

    @staticmethod
    def second(W, tables: RealTables, E: jax.Array, F: jax.Array) -> jax.Array:
        """Return Q M Q^H, M_ij = sum over l and both orders of f[w_i, w_l, w_j] E_il F_lj."""
        w, Q = W
        k = w.shape[0]
        x = jnp.broadcast_to(w[:, None], (k, k))
        P, R = (adjoint_product(Q, product(X, Q)) for X in (E, F))

        def add_middle(M, column):
            w_l, P_l, Pl_, R_l, Rl_ = column
            table = tables.second(x, jnp.broadcast_to(w_l, (k, k)), x.mT).astype(Q.dtype)
            return M + table * (P_l[:, None] * Rl_[None, :] + R_l[:, None] * Pl_[None, :]), None

        # One middle index at a time: memory k^2, and one table in the compiled program.
        M, _ = lax.scan(add_middle, jnp.zeros_like(P), (w, P.mT, P, R.mT, R))
        return product(product(Q, M), adjoint(Q))


class EigenvaluesToThirdOrder(Eigenvalues):
    """The same for functions with `RealTables`, which know third divided differences."""

    @staticmethod
    def third(W, tables: RealTables, E: jax.Array, F: jax.Array, G: jax.Array) -> jax.Array:
        """Return Q M Q^H with M of the module's derivation: k^2 tables of k x k."""
        w, Q = W
        k = w.shape[0]
        x = jnp.broadcast_to(w[:, None], (k, k))
        E, F, G = directions = [adjoint_product(Q, product(X, Q)) for X in (E, F, G)]
        columns, rows = jnp.stack([X.mT for X in directions]), jnp.stack(directions)
        pairs = ((0, 1, 2), (1, 2, 0), (2, 0, 1))

        def add_l(M, at_l):
            w_l, from_l, row_l = at_l  # X[:, l] and X[l, :] of the three

            def add_m(M, at_m):
                w_m, row_m, entries = at_m  # X[m, :] and X[l, m]
                table = tables.third(
                    x, jnp.broadcast_to(w_l, (k, k)), jnp.broadcast_to(w_m, (k, k)), x.mT
                ).astype(Q.dtype)
                terms = [
                    from_l[a][:, None] * (entries[b] * row_m[c] + entries[c] * row_m[b])[None, :]
                    for a, b, c in pairs
                ]
                return M + table * (terms[0] + terms[1] + terms[2]), None

            return lax.scan(add_m, M, (w, rows.swapaxes(0, 1), row_l.mT))[0], None

        stacked = w, columns.swapaxes(0, 1), rows.swapaxes(0, 1)
        M, _ = lax.scan(add_l, jnp.zeros_like(E), stacked)
        return product(product(Q, M), adjoint(Q))
