"""Named functions of Hermitian matrices against SciPy: values, derivatives at ties above all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers import COMPLEX128, FLOAT64, adjoint, assert_same_bits, gaussian, hermitian

from jaxsvd import linalg

FUNCTIONS = {
    "sqrtm": (linalg.sqrtm, scipy.linalg.sqrtm),
    "logm": (linalg.logm, scipy.linalg.logm),
    "expm": (linalg.expm, scipy.linalg.expm),
    "inverse_root": (
        functools.partial(linalg.inverse_root, p=4, ridge=0.5),
        lambda X: scipy.linalg.fractional_matrix_power(X + 0.5 * np.eye(len(X)), -0.25),
    ),
}
TIED = (2.0, 2.0, 2.0, 0.5)


def herm(X):
    return (X + adjoint(X)) / 2


def block_derivative(F, A, *directions):
    """D^n F(A)[E_1, .., E_n] from SciPy's F of one larger matrix (Higham and Relton, 2014)."""
    X, n = A, len(A)
    for E in directions:
        copies = len(X) // n
        X = np.block([[X, np.kron(np.eye(copies), E)], [np.zeros_like(X), X]])
    return np.asarray(F(X))[:n, -n:]


@pytest.mark.parametrize("dtype", [FLOAT64, COMPLEX128])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_two_derivatives_at_ties(name, dtype):
    function, by_scipy = FUNCTIONS[name]
    A, G = hermitian(TIED, dtype, 7), gaussian((4, 4), dtype, 3)
    E, F = (herm(gaussian((4, 4), dtype, seed)) for seed in (1, 2))

    def loss(t, u):
        return jnp.sum((G * function(A + t * E + u * F)).real)

    @jax.jit
    def all_of(t):
        slope = lambda u: jax.jvp(lambda t: loss(t, u), (t,), (1.0,))[1]  # noqa: E731
        first = slope(0.0), jax.grad(loss)(t, 0.0)
        second = (
            jax.jvp(lambda u: jax.grad(loss)(t, u), (0.0,), (1.0,))[1],
            jax.grad(slope)(0.0),
            jax.grad(lambda u: jax.grad(loss)(t, u))(0.0),
        )
        return first, second

    np.testing.assert_allclose(function(A), by_scipy(A), atol=1e-13)
    for found, directions, bar in zip(all_of(0.0), ((E,), (E, F)), (1e-11, 1e-9), strict=True):
        wanted = np.sum((G * block_derivative(by_scipy, A, *directions)).real)
        np.testing.assert_allclose(found, wanted, rtol=bar)


def test_root_of_a_singular_matrix_and_of_a_negative_one():
    A = hermitian((4.0, 4.0, 0.0, 0.0), np.float64, 3)
    root = linalg.sqrtm(A)
    np.testing.assert_allclose(root @ root, A, atol=1e-14)
    # Along matrices of rank two the derivative is that of the root of the two values.
    X = gaussian((4, 4), seed=4)
    dA = X @ A + A @ X.T
    slope = jax.jvp(linalg.sqrtm, (A,), (dA,))[1]
    np.testing.assert_allclose(slope @ root + root @ slope, dA, atol=1e-13)
    assert np.isnan(linalg.sqrtm(np.diag([1.0, -1.0]))).any()


def test_inverse_root_is_differentiated_by_its_numbers():
    A, G = hermitian(TIED, np.float64, 7), gaussian((4, 4), seed=3)

    def loss(p, ridge):
        return jnp.sum(G * linalg.inverse_root(A, p, ridge))

    def by_scipy(p, ridge):
        power = scipy.linalg.fractional_matrix_power
        return np.sum(G * power(A + ridge * np.eye(4), -1 / p))

    h = 1e-5
    wanted = (
        (by_scipy(4 + h, 0.5) - by_scipy(4 - h, 0.5)) / (2 * h),
        (by_scipy(4, 0.5 + h) - by_scipy(4, 0.5 - h)) / (2 * h),
    )
    np.testing.assert_allclose(jax.grad(loss, (0, 1))(4.0, 0.5), wanted, rtol=1e-7)


def test_log_euclidean_distance():
    A, B = hermitian(TIED, np.float64, 1), hermitian((3.0, 1.0, 1.0, 0.2), np.float64, 2)
    distance = linalg.log_euclidean_distance
    wanted = np.linalg.norm(scipy.linalg.logm(A) - scipy.linalg.logm(B))
    np.testing.assert_allclose(distance(A, B), wanted, rtol=1e-12)
    np.testing.assert_allclose(distance(1e150 * A, 1e150 * B), wanted, rtol=1e-12)
    assert distance(A, A) == 0
    assert not jax.grad(distance)(A, A).any()
    stack = np.stack([A, B])
    assert_same_bits(distance(stack, stack[::-1]), jax.vmap(distance)(stack, stack[::-1]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: linalg.sqrtm(np.ones((2, 3))), ValueError, r"linalg.sqrtm: `a` .*\(2, 3\)"),
        (lambda: linalg.sqrtm(np.eye(2), rtol=2.0), ValueError, "linalg.sqrtm: `rtol` .* got 2.0"),
        (lambda: linalg.logm("A"), TypeError, "linalg.logm: `a` must be an array, got str"),
        (lambda: linalg.expm(np.ones(3)), ValueError, "linalg.expm: `a` must have shape .*, got"),
        (lambda: linalg.inverse_root(np.eye(2), 0), ValueError, "linalg.inverse_root: `p` .*got"),
        (
            lambda: linalg.inverse_root(np.eye(2), 2, ridge=-1.0),
            ValueError,
            "linalg.inverse_root: `ridge` must be a number > 0, got",
        ),
        (
            lambda: linalg.log_euclidean_distance(np.eye(2), np.eye(3)),
            ValueError,
            r"linalg.log_euclidean_distance: `b` must have the shape of `a`, \(2, 2\), got",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()
