"""First and second derivatives of jaxsvd.linalg, along curves whose image is known.

A curve of matrices is built from its factors, A(t) = U(t) B(t) V(t)^H with unitary U, V and a core
of fixed size, so that the rank and the ties at t = 0 are chosen and the result f(A(t)) is known
from the factors without any decomposition. Curves are jets in NumPy, (x, x', x'') at t = 0. The
library meets A + t A' + t^2 A''/2 and must reproduce the jet, in every order of differentiation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import adjoint, gaussian, orthonormal

from jaxsvd import linalg

REAL, COMPLEX = np.float64, np.complex128

# ------------------------------------------------------------------------------------------ jets


def mul(*jets):
    (a0, a1, a2), *rest = jets
    for b0, b1, b2 in rest:
        a0, a1, a2 = a0 @ b0, a0 @ b1 + a1 @ b0, a0 @ b2 + 2 * a1 @ b1 + a2 @ b0
    return a0, a1, a2


def adj(jet):
    return tuple(adjoint(x) for x in jet)


def inv(jet):
    x0, x1, x2 = jet
    y0 = np.linalg.inv(x0)
    y1 = -y0 @ x1 @ y0
    return y0, y1, -y0 @ (x2 @ y0 + 2 * x1 @ y1)


def add(a, b):
    return tuple(x + y for x, y in zip(a, b, strict=True))


def constant(x):
    return x, 0 * x, 0 * x


def unitary(n, dtype=REAL, seed=0, start=None):
    """Q exp(t W), W skew: unitary to second order."""
    W = gaussian((n, n), dtype, seed)
    W = (W - adjoint(W)) / 2
    Q = orthonormal(n, n, dtype, seed + 1) if start is None else start
    return Q, Q @ W, Q @ W @ W


def core(values, dtype=REAL, seed=0):
    """A square core with the given singular values at t = 0 that moves in every direction."""
    n = len(values)
    start = np.diag(np.asarray(values, float)).astype(dtype)
    return start, gaussian((n, n), dtype, seed + 3), gaussian((n, n), dtype, seed + 4)


def hermitian(values, dtype=REAL, seed=0):
    return tuple((x + adjoint(x)) / 2 for x in core(values, dtype, seed))


def padded(jet, m, n):
    return tuple(np.pad(x, ((0, m - len(x)), (0, n - len(x[0])))) for x in jet)


def first(jet, r):
    return tuple(x[:, :r] for x in jet)


def of_values(values, m, n, dtype=REAL, seed=0):
    """U, B, V of a curve with r = len(values) nonzero singular values."""
    r = len(values)
    U, V = unitary(m, dtype, seed + 10), unitary(n, dtype, seed + 20)
    return first(U, r), core(values, dtype, seed), first(V, r)


# --------------------------------------------------------------------------------------- programs


@functools.cache
def program(function, arguments: int):
    """(jets, weights) -> first and second derivatives along the curve, in every order."""

    def derivatives(curves, weights):
        def at(t):
            return function(*(x0 + t * x1 + t**2 / 2 * x2 for x0, x1, x2 in curves))

        def pairing(t):
            return jnp.sum((weights * at(t)).real)

        def along(f):
            return lambda t: jax.jvp(f, (t,), (1.0,))[1]

        return {
            "value": at(0.0),
            "jvp": along(at)(0.0),
            "vjp": jax.grad(pairing)(0.0),
            "forward over forward": along(along(at))(0.0),
            "forward over reverse": along(jax.grad(pairing))(0.0),
            "reverse over forward": jax.grad(along(pairing))(0.0),
            "reverse over reverse": jax.grad(jax.grad(pairing))(0.0),
        }

    return jax.jit(derivatives)


ORDERS = {
    "value": 0,
    "jvp": 1,
    "vjp": 1,
    "forward over forward": 2,
    "forward over reverse": 2,
    "reverse over forward": 2,
    "reverse over reverse": 2,
}


def assert_jet(function, curves, wanted, tolerance=1e-11):
    """Assert that function(curves) has the jet ``wanted``: value, first and second derivative."""
    weights = gaussian(wanted[0].shape, wanted[0].dtype, 99)
    got = program(function, len(curves))(curves, weights)
    for mode, order in ORDERS.items():
        y = wanted[order]
        scale = np.linalg.norm(y) + 1e-3
        if "reverse" in mode or mode == "vjp":  # of the pairing with the weights
            scale *= np.linalg.norm(weights)
            y = np.sum((weights * y).real)
        error = np.linalg.norm(np.asarray(got[mode]) - y) / scale
        assert error < tolerance, (mode, error)


# --------------------------------------------------------------------------------- pinv and lstsq

SPECTRA = {
    "distinct": [4.0, 3.0, 1.0],
    "tied": [2.0, 2.0, 2.0],
    "nearly tied": [2.0, 2.0 + 1e-9, 1.0],
    "deficient": [3.0, 1.0],
    "deficient, tied": [1.0, 1.0],
    "ill-conditioned": [1.0, 1e-6, 0.9e-6],
}


def pseudoinverse(U, B, V):
    return mul(V, inv(B), adj(U))


@pytest.mark.parametrize(("shape", "dtype"), [((5, 3), REAL), ((3, 5), COMPLEX)])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_pinv(spectrum, shape, dtype):
    values = np.array(SPECTRA[spectrum])
    U, B, V = of_values(values, *shape, dtype)
    if values[-1] < 1e-3:  # tangents of the size of the values, or no digits are left to compare
        D = np.diag(values**0.5).astype(dtype)
        B = tuple(D @ x @ D for x in (np.eye(3, dtype=dtype), *B[1:]))
    A = mul(U, B, adj(V))
    tolerance = 1e-11 if values[-1] > 1e-3 else 1e-4
    assert_jet(linalg.pinv, (A,), pseudoinverse(U, B, V), tolerance)


@pytest.mark.parametrize("spectrum", ["tied", "deficient, tied"])
def test_lstsq_in_both_arguments(spectrum):
    U, B, V = of_values(SPECTRA[spectrum], 5, 3)
    b = tuple(gaussian((5, 2), seed=s) for s in range(3))
    A = mul(U, B, adj(V))
    assert_jet(linalg.lstsq, (A, b), mul(pseudoinverse(U, B, V), b))


def test_the_derivative_of_pinv_is_that_of_golub_and_pereyra():
    U, B, V = of_values([2.0, 2.0, 1.0], 6, 4, COMPLEX)
    A = mul(U, B, adj(V))[0]
    dA = mul(U, B, adj(V))[1]
    A_pinv, dual = np.linalg.pinv(A, 1e-12), np.linalg.pinv(A @ adjoint(A), 1e-12)
    left, right = np.eye(6) - A @ A_pinv, np.eye(4) - A_pinv @ A
    normal = np.linalg.pinv(adjoint(A) @ A, 1e-12)
    wanted = -A_pinv @ dA @ A_pinv + normal @ adjoint(dA) @ left + right @ adjoint(dA) @ dual
    got = jax.jit(lambda A, dA: jax.jvp(linalg.pinv, (A,), (dA,))[1])(A, dA)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())
    # ... and of the solution: gradients of lstsq at constant rank, in a and in b.
    b, c = gaussian((6, 2), COMPLEX, 5), gaussian((4, 2), COMPLEX, 6)
    dx = wanted @ b
    loss = lambda A, b: jnp.sum((c * linalg.lstsq(A, b)).real)  # noqa: E731
    gA, gb = jax.jit(jax.grad(loss, (0, 1)))(A, b)
    np.testing.assert_allclose(np.sum((gA * dA).real), np.sum((c * dx).real), rtol=1e-12)
    np.testing.assert_allclose(gb, A_pinv.T @ c, rtol=0, atol=1e-13)


def test_pinv_accounts_for_the_values_it_drops():
    """The dropped value 0.05 enters the derivative of the kept part; jnp.linalg.pinv forgets it."""
    U, B, V = of_values([3.0, 1.0, 0.05], 5, 3)
    big, small = first(U, 2), tuple(x[:, 2:] for x in U)
    top = tuple(x[:2, :2] for x in B)
    rest = tuple(x[2:, 2:] for x in B)
    V_big, V_small = first(V, 2), tuple(x[:, 2:] for x in V)
    A = add(mul(big, top, adj(V_big)), mul(small, rest, adj(V_small)))
    dropping = functools.partial(linalg.pinv, rtol=0.1)
    assert_jet(dropping, (A,), mul(V_big, inv(top), adj(big)))


# --------------------------------------------------------------------------------------- alignment


def polar_factors(A):
    return jnp.concatenate(linalg.polar(A))


def right_factor(A):
    return linalg.polar(A).P


def left_factor(A):
    return linalg.polar(A, side="left").P


def stacked(*jets):
    return tuple(np.concatenate(parts) for parts in zip(*jets, strict=True))


@pytest.mark.parametrize(("m", "n", "dtype"), [(3, 3, REAL), (5, 3, COMPLEX)])
@pytest.mark.parametrize("spectrum", ["distinct", "tied", "nearly tied"])
def test_polar(spectrum, m, n, dtype):
    R, H = first(unitary(m, dtype, 1), n), hermitian(SPECTRA[spectrum], dtype, 2)
    assert_jet(polar_factors, (mul(R, H),), stacked(R, H))


def test_orthogonalize_of_a_wide_matrix():
    R, H = first(unitary(5, REAL, 1), 3), hermitian([2.0, 2.0, 1.0])
    assert_jet(linalg.orthogonalize, (mul(H, adj(R)),), adj(R))


def test_an_ill_conditioned_matrix_keeps_the_second_derivative_of_its_polar_factors():
    R, H = unitary(3, REAL, 1), hermitian([1.0, 1e-5, 1e-5])
    D = np.diag([1.0, 10**-2.5, 10**-2.5])
    H = tuple(D @ x @ D for x in (np.eye(3), *H[1:]))
    assert_jet(polar_factors, (mul(R, H),), stacked(R, H), 1e-8)


@pytest.mark.parametrize("values", [[3.0, 1.0], [1.0, 1.0]])
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_positive_polar_factor_at_constant_rank(side, values):
    m, n, dtype = (5, 3, COMPLEX) if side == "right" else (3, 4, REAL)
    U, V = first(unitary(m, dtype, 1), 2), first(unitary(n, dtype, 5), 2)
    H = hermitian(values, dtype, 2)
    A = mul(U, H, adj(V))
    if side == "right":
        assert_jet(right_factor, (A,), mul(V, H, adj(V)))
    else:
        assert_jet(left_factor, (A,), mul(U, H, adj(U)))


def test_procrustes():
    A = orthonormal(6, 3, COMPLEX, 1)  # A^H A = I: the product with B is B's core itself
    R, H = unitary(3, COMPLEX, 2), hermitian([2.0, 2.0, 1.0], COMPLEX, 3)
    B = mul(constant(A), H, R)  # A^H B = H R: the unitary factor is R

    def solution(A, B):
        result = linalg.procrustes(A, B)
        return jnp.concatenate([result.R.reshape(-1), result.scale.reshape(1).astype(A.dtype)])

    wanted = [np.append(r.reshape(-1), np.trace(h).real) for r, h in zip(R, H, strict=True)]
    assert_jet(solution, (constant(A), B), wanted)


CUBE = np.array([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])
SQUARE = np.array([[x, y, 0.0] for x in (-1.0, 1) for y in (-1.0, 1) for _ in range(2)])


def rigid_motion(P, Q):
    R, t = linalg.kabsch(P, Q)
    return jnp.concatenate([R, t[:, None]], axis=1)


def special(Q):
    return Q * np.sign(np.linalg.det(Q)) if len(Q) % 2 else Q


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 1.0, 1.0],  # the cube itself
        [2.0, 1.0, 1.0],
        [3.0, 2.0, 0.0],  # squashed to a plane
        [2.0, 2.0, -1.0],  # a mirror image, the two large values tied
        [2.0, 1.5, 1e-9],
    ],
)
def test_kabsch_of_a_cube(values):
    """q = R K p with K symmetric, so that H = 8 R K has the rotation R while K_ii + K_jj > 0."""
    assert_motion(CUBE, hermitian(values, REAL, 2))


def test_kabsch_of_a_planar_set():
    # Points that stay in one plane: the sum of p p^T is diag(8, 8, 0).
    assert_motion(SQUARE, padded(hermitian([1.0, 1.0], REAL, 2), 3, 3))


def assert_motion(points, K):
    R = unitary(3, REAL, 1, start=special(orthonormal(3, 3, REAL, 4)))
    centre = gaussian((1, 3), seed=6)
    moving = tuple(gaussian((1, 3), seed=s) for s in (7, 8, 9))
    ones = constant(np.ones((8, 1)))
    Q = add(mul(constant(points), adj(mul(R, K))), mul(ones, moving))
    # The centroid of P goes to that of Q.
    t = add(adj(moving), tuple(-x for x in mul(R, constant(centre.T))))
    wanted = tuple(np.concatenate(parts, axis=1) for parts in zip(R, t, strict=True))
    assert_jet(rigid_motion, (constant(points + centre), Q), wanted)


def kabsch_in_numpy(P, Q, w):
    w = w / w.sum()
    p, q = w @ P, w @ Q
    U, s, Vh = np.linalg.svd((Q - q).T @ ((P - p) * w[:, None]))
    signs = np.ones(len(s))
    signs[-1] = np.sign(np.linalg.det(U @ Vh))
    R = U * signs @ Vh
    return R, q - R @ p


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("points", ["cube", "square", "random"])
def test_the_gradient_of_kabsch_against_finite_differences(points, mirrored):
    P = {"cube": CUBE, "square": SQUARE, "random": gaussian((8, 3), seed=3)}[points]
    # A mirror image of the cube has s_d = s_{d-1}, where no derivative exists: stretch it.
    Q = P @ np.diag([1.3, 1.1, -0.6 if mirrored else 1.0]) @ orthonormal(3, 3, seed=5)
    w = np.abs(gaussian((8,), seed=6)) + 0.5
    c, d = gaussian((3, 3), seed=7), gaussian((3,), seed=8)

    def loss(kabsch, P, Q, w):
        R, t = kabsch(P, Q, w)
        return (c * R).sum() + (d * t).sum()

    gradients = gradient_of_kabsch(P, Q, w, c, d)
    arguments, h = [P, Q, w], 1e-5
    for i, gradient in enumerate(gradients):
        wanted = np.zeros(arguments[i].size)
        for j in range(wanted.size):
            step = np.zeros(wanted.size)
            step[j] = h
            step = step.reshape(arguments[i].shape)
            up, down = [*arguments], [*arguments]
            up[i], down[i] = arguments[i] + step, arguments[i] - step
            difference = loss(kabsch_in_numpy, *up) - loss(kabsch_in_numpy, *down)
            wanted[j] = difference / (2 * h)
        np.testing.assert_allclose(gradient.reshape(-1), wanted, rtol=0, atol=1e-8)


@jax.jit
def gradient_of_kabsch(P, Q, w, c, d):
    def loss(P, Q, w):
        R, t = linalg.kabsch(P, Q, w)
        return jnp.sum(c * R) + jnp.sum(d * t)

    return jax.grad(loss, (0, 1, 2))(P, Q, w)


@pytest.mark.parametrize("Q", [CUBE @ np.diag([1.0, 1, -1]), 0 * CUBE, CUBE @ np.diag([1.0, 0, 0])])
def test_the_gradient_of_kabsch_is_finite_where_the_rotation_is_not_unique(Q):
    w, c, d = np.ones(8), np.ones((3, 3)), np.ones(3)
    for gradient in gradient_of_kabsch(CUBE, Q, w, c, d):
        assert np.all(np.isfinite(gradient))


# ---------------------------------------------------------------------------------------- subspaces


def projectors(a, rank=None):
    spaces = linalg.subspaces(a, rank=rank)
    return jnp.concatenate([(Q @ Q.mT.conj()).reshape(-1) for Q in spaces])


@pytest.mark.parametrize(("m", "n", "dtype", "rank"), [(4, 3, REAL, None), (3, 5, COMPLEX, 2)])
@pytest.mark.parametrize("values", [[1.0, 1.0], [3.0, 2.0]])
def test_projectors_on_the_fundamental_subspaces(values, rank, m, n, dtype):
    U, B, V = of_values(values, m, n, dtype)
    on_U, on_V = mul(U, adj(U)), mul(V, adj(V))
    off_U = add(constant(np.eye(m)), tuple(-x for x in on_U))
    off_V = add(constant(np.eye(n)), tuple(-x for x in on_V))
    wanted = [
        np.concatenate([x.reshape(-1) for x in parts])
        for parts in zip(on_U, off_V, on_V, off_U, strict=True)
    ]
    function = PROJECTORS[rank]
    assert_jet(function, (mul(U, B, adj(V)),), wanted)


PROJECTORS = {rank: functools.partial(projectors, rank=rank) for rank in (None, 2)}


def test_principal_angles():
    """Ranges of Q [I; 0] G and Q [cos; sin] H with any invertible G, H."""
    theta = np.array([1.2, 0.4, 0.01]), np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.1, -1.0])
    t0, t1, t2 = theta
    c, s = np.cos(t0), np.sin(t0)
    cos, sin = (c, -s * t1, -c * t1**2 - s * t2), (s, c * t1, -s * t1**2 + c * t2)
    both = tuple(np.concatenate([np.diag(c), np.diag(s)]) for c, s in zip(cos, sin, strict=True))
    Q = unitary(6, REAL, 1)
    A = mul(first(Q, 3), core([3.0, 2.0, 2.0], REAL, 5))
    B = mul(Q, both, core([1.0, 1.0, 2.0], REAL, 6))
    assert_jet(linalg.principal_angles, (A, B), theta, 1e-10)


# ------------------------------------------------------------------------------------------- others


@pytest.mark.parametrize("values", [[2.0, 2.0, 2.0], [2.0, 2.0, 0.5], [1.0, 1e-3, 0.9e-3]])
def test_whitening_by_the_inverse_root(values):
    W = hermitian(np.asarray(values) ** -0.5, COMPLEX, 3)
    tolerance = 1e-10 if values[-1] > 0.1 else 1e-7
    assert_jet(linalg.whitening, (inv(mul(W, W)),), W, tolerance)


def test_whitening_at_constant_rank():
    Q, W = first(unitary(3, COMPLEX, 1), 2), hermitian([1.0, 1.0], COMPLEX, 3)
    C = mul(Q, inv(mul(W, W)), adj(Q))
    assert_jet(linalg.whitening, (C,), mul(Q, W, adj(Q)))


@pytest.mark.parametrize("kind", ["pca", "cholesky"])
def test_whitened_covariances_stay_the_identity(kind):
    def whitened(C):
        W = linalg.whitening(C, kind)
        return W @ C @ W.mT

    C, dC, _ = hermitian([3.0, 2.0, 1.0], REAL, 1)
    change = jax.jit(lambda C, dC: jax.jvp(whitened, (C,), (dC,))[1])(C, dC)
    np.testing.assert_allclose(change, np.zeros((3, 3)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("values", [[3.0, 2.0], [2.0, 2.0]])
def test_tls_of_two_right_hand_sides(values):
    """C = [A B] with known right subspaces: V_1 of the kept values, V_2 of the rest, tied too."""
    U, V = unitary(6, REAL, 1), unitary(4, REAL, 5)
    U1, U2, V1 = first(U, 2), tuple(x[:, 2:4] for x in U), first(V, 2)
    V2 = tuple(x[:, 2:] for x in V)
    C = add(mul(U1, core(values, REAL, 3), adj(V1)), mul(U2, core([0.1, 0.1], REAL, 4), adj(V2)))
    top, bottom = tuple(x[:2] for x in V2), tuple(x[2:] for x in V2)
    wanted = tuple(-x for x in mul(top, inv(bottom)))
    assert_jet(linalg.tls, (first(C, 2), tuple(x[:, 2:] for x in C)), wanted)


def test_the_condition_in_the_frobenius_norm():
    B = core([2.0, 2.0, 2.0], REAL, 3)
    inverse = inv(B)

    def square(jet):  # of the Frobenius norm
        x0, x1, x2 = jet
        return np.sum(x0**2), 2 * np.sum(x0 * x1), 2 * np.sum(x1**2 + x0 * x2)

    (a0, a1, a2), (b0, b1, b2) = square(B), square(inverse)
    wanted = a0 * b0, a1 * b0 + a0 * b1, a2 * b0 + 2 * a1 * b1 + a0 * b2
    squared = lambda A: linalg.cond(A, "fro") ** 2  # noqa: E731
    assert_jet(squared, (B,), tuple(np.asarray(x) for x in wanted))


def test_the_condition_in_the_spectral_norm_at_a_tie_inside():
    U, V = unitary(4, REAL, 1), unitary(4, REAL, 5)
    s = np.diag([4.0, 2, 2, 1]), np.diag([1.0, 3, 4, 2]), np.diag([1.0, -1, 0, 1])
    top, bottom = [x[0, 0] for x in s], [x[3, 3] for x in s]
    y = [1 / bottom[0], -bottom[1], 2 * bottom[1] ** 2 - bottom[2]]
    wanted = top[0] * y[0], top[1] * y[0] + top[0] * y[1], None
    wanted = *wanted[:2], top[2] * y[0] + 2 * top[1] * y[1] + top[0] * y[2]
    assert_jet(linalg.cond, (mul(U, s, adj(V)),), tuple(np.asarray(x) for x in wanted))


def test_rayleigh_quotient_is_stationary_at_singular_vectors():
    A = gaussian((4, 3), COMPLEX)
    U, s, Vh = np.linalg.svd(A)
    quotient = lambda v, u: linalg.rayleigh_quotient(A, v, u).real  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(quotient, (0, 1)))(3 * Vh[1].conj(), 2 * U[:, 1])
    np.testing.assert_allclose(value, s[1], rtol=1e-14)
    for gradient in gradients:
        assert np.abs(gradient).max() < 1e-14


def test_eigenpairs_of_jordan_wielandt_move_with_the_matrix():
    U, V = unitary(4, COMPLEX, 1), unitary(3, COMPLEX, 5)
    s = [np.diag(x) for x in ([3.0, 2, 1], [1.0, -1, 2], [1.0, 0, 1])]
    A = mul(U, padded([x.astype(COMPLEX) for x in s], 4, 3), adj(V))
    d = [np.diag(x) for x in s]
    zero = np.zeros(1)
    wanted = [np.concatenate([-x, zero, x[::-1]]) for x in d]
    eigenvalues = lambda A: linalg.jordan_wielandt(A).eigenvalues  # noqa: E731
    assert_jet(eigenvalues, (A,), wanted)


def test_third_derivatives_are_refused_by_name():
    f = linalg.pinv
    for _ in range(3):
        f = functools.partial(lambda f, A: jax.jvp(f, (A,), (A,))[1], f)
    with pytest.raises(
        ValueError, match=r"^linalg\.pinv: derivatives up to the second order exist"
    ):
        f(jnp.eye(2))
