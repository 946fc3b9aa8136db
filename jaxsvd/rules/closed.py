"""Matrix functions whose divided differences have a closed form: no quadrature, no threshold.

`rules.spectral` takes any f and replaces quotients of close values by quadrature of f' and f''.
That rests on an f that varies on the scale of s_1. 1/s, sign(s) and s^(-1/2) vary on the scale of s
itself. Relative errors of the second derivative, double precision, singular values (1, c, 0.9 c):

    c                        1e-4      1e-5      1e-6
    1/s     by quadrature    5e-12     1e-6      5e3
            closed           5e-12     4e-11     2e-10
    sign    by quadrature    3e-13     8e-13     7e-2
            closed           5e-14     4e-14     3e-13

(in single precision the same happens from c = 5e-3). Their divided differences are known:

    f = 1/x        f[x, y] = -1/(x y)                  f[x, y, z] = 1/(x y z)
    f = sign x     f[x, y] = (sign x - sign y)/(x - y), 0 for equal signs
    f = x^(-1/2)   f[x, y] = -1/(a b (a + b)),         a = x^(1/2), b = y^(1/2), c = z^(1/2)
                   f[x, y, z] = (a + b + c) / (a b c (a + b)(b + c)(c + a))
    f = x^(1/2)    f[x, y] = 1/(a + b)             f[x, y, z] = -1/((a + b)(b + c)(c + a))

A `Truncated` function is f above a cut and 0 up to it. It is as smooth as f wherever no singular
value stands at the cut, and on matrices of constant rank it is f of the nonzero values alone. With
u, v, w kept and z, z' dropped

    f[u, z] = f(u)/(u - z),  f[u, v, z] = (f[u, v] - f(v)/(v - z))/(u - z),
    f[u, z, z'] = f(u)/((u - z)(u - z')),  f[z, ...] = 0.

`Orthogonal` is the factor R = U V^H of A = R H, H Hermitian, and the rotation of signed singular
values U diag(t) V^H with det U V^H = 1. Differentiate R^H R = I and R^H A = H along E, then F, in
the basis of U and V (A = U diag(t) V^H, P = U^H E V, N the part outside the range of U):

    R_E  = U W_E + N_E,            W_E o (t_i + t_j) = P - P^H,      N_E = (E V - U P) / t_j
    R_EF = U (G + K) + Q,          G = -(R_E^H R_F + R_F^H R_E)/2,
           K o (t_i + t_j) = M - M^H,   M = G diag(t) + R_E^H F V + R_F^H E V,
           Q = -(N_E H_F + N_F H_E) / t_j,   H_E = P - W_E diag(t)

all times V^H from the right. No difference of singular values occurs: ties are as good as any other
values. With t_n = -s_n < 0 the sums t_i + t_n = s_i - s_n are the distance to the matrices where
the nearest rotation jumps. t = 0 alone (a planar set of points) is no exception.

References: Golub and Pereyra (1973), "The differentiation of pseudo-inverses and nonlinear least
squares problems whose variables separate", eq. 4.12; Higham (2008), "Functions of Matrices",
theorem 3.11 (Daleckii and Krein) and chapter 8 (polar); Umeyama (1991), eq. 43 (the sign).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import _tolerances
from .._types import SVDResult
from ..algorithms.products import adjoint, adjoint_product, product
from .dense import guarded_reciprocal, skew
from .hermitian import Eigenvalues
from .spectral import SingularValues


class Form(NamedTuple):
    """A scalar function with its divided differences of first and second order."""

    value: Callable[[jax.Array], jax.Array]
    first: Callable[[jax.Array, jax.Array], jax.Array]
    second: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _sign_first(x, y):
    same = jnp.sign(x) == jnp.sign(y)
    return jnp.where(same, 0, 2 * jnp.sign(x) / jnp.where(same, 1, x - y))


def _sign_second(x, y, z):
    # Two of three signs agree, and the difference over that pair vanishes; one quotient remains.
    xy, yz = _sign_first(x, y), _sign_first(y, z)
    left = jnp.where(xy == 0, -yz, xy)
    gap = jnp.where((xy == 0) | (yz == 0), x - z, y - z)
    return jnp.where(left == 0, 0, left / jnp.where(left == 0, 1, gap))


def _inverse_root_first(x, y):
    a, b = jnp.sqrt(x), jnp.sqrt(y)
    return -1 / (a * b * (a + b))


def _inverse_root_second(x, y, z):
    a, b, c = jnp.sqrt(x), jnp.sqrt(y), jnp.sqrt(z)
    return (a + b + c) / (a * b * c * (a + b) * (b + c) * (c + a))


def _root_first(x, y):
    return 1 / (jnp.sqrt(x) + jnp.sqrt(y))


def _root_second(x, y, z):
    a, b, c = jnp.sqrt(x), jnp.sqrt(y), jnp.sqrt(z)
    return -1 / ((a + b) * (b + c) * (c + a))


RECIPROCAL = Form(lambda x: 1 / x, lambda x, y: -1 / x / y, lambda x, y, z: 1 / x / y / z)
SIGN = Form(jnp.sign, _sign_first, _sign_second)
INVERSE_ROOT = Form(lambda x: 1 / jnp.sqrt(x), _inverse_root_first, _inverse_root_second)
ROOT = Form(jnp.sqrt, _root_first, _root_second)


class Differences:
    """Divided differences of a form above a cut and of 0 up to it.

    Args:
        form: the function; odd, or given for positive arguments alone.
        cut: magnitude up to which a value is dropped, a positive scalar.
    """

    def __init__(self, form: Form, cut: jax.Array):
        self.form, self.cut = form, cut

    def kept(self, x: jax.Array) -> jax.Array:
        """Return which values are above the cut."""
        return jnp.abs(x) > self.cut

    def value(self, x: jax.Array) -> jax.Array:
        """Return f(x), elementwise."""
        kept = self.kept(x)
        return jnp.where(kept, self.form.value(jnp.where(kept, x, 1)), 0)

    def first(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Return f[x, y], elementwise on two arrays of one shape."""
        x, y = _larger_first(x, y)
        one, two = self.kept(x), self.kept(y)
        x = jnp.where(one, x, 1)
        of_pair = self.form.first(x, jnp.where(two, y, 1))
        # x - y is at least the distance of x from the cut.
        of_one = self.form.value(x) / jnp.where(two, 1, x - y)
        return jnp.where(two, of_pair, jnp.where(one, of_one, 0))

    def second(self, x: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
        """Return f[x, y, z], elementwise on three arrays of one shape."""
        x, y = _larger_first(x, y)
        x, z = _larger_first(x, z)
        y, z = _larger_first(y, z)
        one, two, three = self.kept(x), self.kept(y), self.kept(z)
        x, safe = jnp.where(one, x, 1), jnp.where(two, y, 1)
        to_z = jnp.where(three, 1, safe - z)
        of_three = self.form.second(x, safe, jnp.where(three, z, 1))
        of_two = (self.form.first(x, safe) - self.form.value(safe) / to_z) / (
            x - jnp.where(three, 0, z)
        )
        of_one = self.form.value(x) / (x - jnp.where(two, 0, y)) / (x - jnp.where(two, 0, z))
        return jnp.where(three, of_three, jnp.where(two, of_two, jnp.where(one, of_one, 0)))


def _larger_first(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    swap = jnp.abs(x) < jnp.abs(y)
    return jnp.where(swap, y, x), jnp.where(swap, x, y)


def cut_at(
    S: jax.Array, shape: tuple[int, ...], rtol: float | None, rank: int | None = None
) -> jax.Array:
    """Return the magnitude up to which values are dropped: rtol s_1, or s_{rank + 1}.

    Args:
        S: magnitudes, largest first, (k,).
        shape: (m, n) of the matrix.
        rtol: relative to s_1; default `rank_tol`.
        rank: how many to keep, in place of a tolerance.
    """
    tiny = jnp.finfo(S.dtype).tiny  # what a zero is lifted to in `SingularValues.spectrum`
    if rank is not None:
        return jnp.maximum(S[rank], tiny) if rank < S.shape[0] else jnp.full((), tiny, S.dtype)
    rtol = _tolerances.rank_tol(S.dtype, *shape) if rtol is None else rtol
    return jnp.maximum(rtol * S[0], tiny)


@dataclasses.dataclass(frozen=True)
class Truncated(SingularValues):
    """U f(S) V^H over the singular values above a cut; W is the thin SVD.

    Attributes:
        form: the function.
        rtol: values up to rtol s_1 are dropped; default `rank_tol`.
        rank: how many values to keep, in place of a tolerance.
    """

    form: Form
    rtol: float | None = None
    rank: int | None = None

    def tables(self, W: SVDResult, scalar: Any, shape: tuple[int, ...]) -> Any:
        """Return the divided differences in closed form."""
        return Differences(self.form, cut_at(W.S, shape, self.rtol, self.rank))

    @classmethod
    def value(cls, W: SVDResult, tables: Any) -> jax.Array:
        """Return U f(S) V^H."""
        U, S, Vh = W
        return product(U * tables.value(S)[None, :].astype(U.dtype), Vh)


@dataclasses.dataclass(frozen=True)
class TruncatedHermitian(Eigenvalues):
    """Q f(w) Q^H over the eigenvalues above a cut; W is (w, Q). Attributes as in `Truncated`."""

    form: Form
    rtol: float | None = None

    def tables(self, W: Any, scalar: Any, shape: tuple[int, ...]) -> Any:
        """Return the divided differences in closed form."""
        largest = jnp.max(jnp.abs(W[0]), keepdims=True)
        return Differences(self.form, cut_at(largest, shape, self.rtol))


class Orthogonal:
    """U V^H of a matrix with m >= n, W = (U, t, Vh); the t may be signed, see the derivation."""

    @staticmethod
    def tables(W: SVDResult, scalar: Any, shape: tuple[int, ...]) -> Any:
        """Return 1/(t_i + t_j) and 1/t_j, guarded: 0 between the null vectors of either side."""
        t = W.S
        zero = _tolerances.rank_tol(t.dtype, *shape) * jnp.abs(t[0])
        reciprocals = guarded_reciprocal(t[:, None] + t[None, :], zero), guarded_reciprocal(t, zero)
        return tuple(x.astype(W.U.dtype) for x in reciprocals)

    @staticmethod
    def value(W: SVDResult, tables: Any) -> jax.Array:
        """Return U V^H."""
        return product(W.U, W.Vh)

    @staticmethod
    def parts(W: SVDResult, tables: Any, E: jax.Array) -> tuple[jax.Array, ...]:
        """Return E V, P, W_E and N_E of the derivation."""
        U, _, Vh = W
        of_sum, of_one = tables
        EV = product(E, adjoint(Vh))
        P = adjoint_product(U, EV)
        outside = (EV - product(U, P)) * of_one[None, :] if U.shape[0] > U.shape[1] else 0 * EV
        return EV, P, 2 * skew(P) * of_sum, outside

    @classmethod
    def first(cls, W: SVDResult, tables: Any, E: jax.Array) -> jax.Array:
        """Return R_E; four products of m n^2."""
        _, _, rotation, outside = cls.parts(W, tables, E)
        return product(product(W.U, rotation) + outside, W.Vh)

    @classmethod
    def second(cls, W: SVDResult, tables: Any, E: jax.Array, F: jax.Array) -> jax.Array:
        """Return R_EF; about ten products of m n^2."""
        U, t, Vh = W
        of_sum, of_one = tables
        t = t.astype(U.dtype)[None, :]
        (EV, P, W_E, N_E), (FV, R, W_F, N_F) = (cls.parts(W, tables, X) for X in (E, F))
        R_E, R_F = product(U, W_E) + N_E, product(U, W_F) + N_F
        H_E, H_F = P - W_E * t, R - W_F * t
        both = adjoint_product(R_E, R_F)
        G = -(both + adjoint(both)) / 2
        M = G * t + adjoint_product(R_E, FV) + adjoint_product(R_F, EV)
        K = 2 * skew(M) * of_sum
        outside = (product(N_E, H_F) + product(N_F, H_E)) * of_one[None, :]
        return product(product(U, G + K) - outside, Vh)
