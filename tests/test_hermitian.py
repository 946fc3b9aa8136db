"""Functions of Hermitian matrices and their derivatives, at ties above all.

The oracle for derivatives of any order is SciPy's function of one larger matrix, in which neither
eigenvalues nor divided differences occur: with X_0 = A and X_k = [[X_{k-1}, E_k], [0, X_{k-1}]],
E_k as often on the diagonal as needed, the block of f(X_n) in the upper right is
D^n f(A)[E_1, .., E_n] (Higham and Relton, 2014, theorem 3.5).
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.linalg
from helpers import (
    adjoint,
    assert_same_bits,
    assert_within,
    double,
    finite_differences,
    gaussian,
    hermitian,
)

import jaxsvd

REAL, COMPLEX = np.float64, np.complex128

FUNCTIONS = {
    "cube": (lambda w: w**3, lambda X: X @ X @ X),
    "expm": (jnp.exp, scipy.linalg.expm),
    "inverse": (lambda w: 1 / w, np.linalg.inv),
    "sqrtm": (jnp.sqrt, scipy.linalg.sqrtm),
    "logm": (jnp.log, scipy.linalg.logm),
    "inverse fourth root": (
        lambda w: w**-0.25,
        lambda X: np.linalg.inv(scipy.linalg.sqrtm(scipy.linalg.sqrtm(X))),
    ),
}
ENTIRE = ("cube", "expm")  # defined for any eigenvalues

POSITIVE = {
    "distinct": (2.0, 1.5, 0.9, 0.4),
    "tied": (2.0, 2.0, 2.0, 0.5),
    "two ties": (2.0, 2.0, 0.5, 0.5),
    "identity": (1.0, 1.0, 1.0, 1.0),
    "tied up to 1e-13": (2.0, 2.0 - 1e-13, 0.5 + 1e-13, 0.5),
    "tied up to 1e-4": (2.0, 2.0 - 1e-4, 2.0 - 3e-4, 0.5),
    "tied up to 1e-2": (2.0, 1.99, 1.97, 1.98),
}
ANY = {
    "singular": (1.0, 1.0, 0.0, 0.0),
    "zero": (0.0, 0.0, 0.0, 0.0),
    "indefinite": (1.0, -1.0, -1.0, 1.0),
    "close to singular": (1.0, 1e-5, 0.0, -1e-5),
}
CASES = [(f, name) for f in FUNCTIONS for name in POSITIVE]
CASES += [(f, name) for f in ENTIRE for name in ANY]


def herm(X):
    return (X + adjoint(X)) / 2


def frechet(F, A: np.ndarray, *directions: np.ndarray) -> np.ndarray:
    """D^n F(A)[E_1, .., E_n] of a SciPy function of matrices."""
    X, n = A, len(A)
    for E in directions:
        copies = len(X) // n
        X = np.block([[X, np.kron(np.eye(copies), E)], [np.zeros_like(X), X]])
    return np.asarray(F(X))[:n, -n:]


@functools.cache
def derivatives(dtype, symmetrize: bool = True):
    """(index of the function, A, directions, weights) -> derivatives up to third order.

    Of Re tr(W^T f(A + t_1 E_1 + t_2 E_2 + t_3 E_3)) by each t, in every order of the two modes, the
    innermost first.
    """
    scalars = [f for f, _ in FUNCTIONS.values()]

    def all_of(index, A, directions, weights):
        def value(*t):
            moved = A + sum(x * E for x, E in zip(t, directions, strict=True))
            mapped = jaxsvd.hermitian_map(
                lambda w: jax.lax.switch(index, scalars, w), moved, symmetrize_input=symmetrize
            )
            return jnp.sum((weights * mapped).real)

        def by(mode, i, function):
            if mode == "reverse":
                return jax.grad(function, argnums=i)

            def forward(*t):
                along = lambda x: function(*t[:i], x, *t[i + 1 :])  # noqa: E731
                return jax.jvp(along, (t[i],), (jnp.ones_like(t[i]),))[1]

            return forward

        found = {}
        for order in (1, 2, 3):
            for modes in itertools.product(("forward", "reverse"), repeat=order):
                function = value
                for i, mode in enumerate(modes):
                    function = by(mode, i, function)
                found[modes] = function(0.0, 0.0, 0.0)
        return found

    return jax.jit(all_of)


def directions_and_weights(dtype):
    E = [herm(gaussian((4, 4), dtype, 50 + i)) for i in range(3)]
    return E, gaussian((4, 4), dtype, 60)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=["real", "complex"])
@pytest.mark.parametrize(("function", "values"), CASES)
def test_three_orders_of_derivatives_against_scipy(function, values, dtype):
    A = hermitian({**POSITIVE, **ANY}[values], dtype, seed=7)
    E, weights = directions_and_weights(dtype)
    index = jnp.int32(list(FUNCTIONS).index(function))
    found = derivatives(dtype)(index, A, E, weights)
    F = FUNCTIONS[function][1]
    for modes, got in found.items():
        exact = frechet(F, A, *E[: len(modes)])
        wanted = np.sum((weights * exact).real)
        error = abs(float(got) - wanted) / max(np.linalg.norm(exact), 1)
        assert error < {1: 1e-11, 2: 2e-9, 3: 1e-7}[len(modes)], (modes, error)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=["real", "complex"])
def test_the_oracle_agrees_with_expm_frechet(dtype):
    A, (E, *_) = hermitian((1.0, 1.0, 0.5, 0.5), dtype), directions_and_weights(dtype)[0]
    wanted = scipy.linalg.expm_frechet(A, E, compute_expm=False)
    np.testing.assert_allclose(frechet(scipy.linalg.expm, A, E), wanted, rtol=0, atol=1e-13)
    expm = lambda A: jaxsvd.hermitian_map(jnp.exp, A)  # noqa: E731
    np.testing.assert_allclose(jax.jvp(expm, (A,), (E,))[1], wanted, rtol=0, atol=1e-12)


def test_a_wide_spectrum_against_fifty_digits():
    """Inverse fourth roots of a spectrum over six orders of magnitude with ties at each of them."""
    w = np.array([1.0, 1.0 - 1e-7, 1e-3, 1e-3 * (1 - 1e-5), 1e-6, 1e-6, 0.9e-6])
    E = herm(gaussian((7, 7), REAL, 3))
    F = herm(gaussian((7, 7), REAL, 4))

    def difference(*points):  # of x^(-1/4), in 50 digits
        points = sorted(points)
        if points[0] == points[-1]:
            n = len(points) - 1
            factor = mpmath.ff(mpmath.mpf(-1) / 4, n) / mpmath.factorial(n)
            return factor * points[0] ** (mpmath.mpf(-1) / 4 - n)
        if len(points) == 1:
            return points[0] ** (mpmath.mpf(-1) / 4)
        return (difference(*points[1:]) - difference(*points[:-1])) / (points[-1] - points[0])

    with mpmath.workdps(50):
        exact = [mpmath.mpf(float(x)) for x in w]
        wanted = [np.zeros((7, 7)), np.zeros((7, 7))]
        for i, j in itertools.product(range(7), repeat=2):
            wanted[0][i, j] = difference(exact[i], exact[j]) * E[i, j]
            for l in range(7):
                factor = float(difference(exact[i], exact[l], exact[j]))
                wanted[1][i, j] += factor * (E[i, l] * F[l, j] + F[i, l] * E[l, j])

    root = lambda A: jaxsvd.hermitian_map(lambda w: w**-0.25, A)  # noqa: E731
    first = lambda A: jax.jvp(root, (A,), (E,))[1]  # noqa: E731
    A = jnp.diag(w)
    np.testing.assert_allclose(first(A), wanted[0], rtol=1e-11)
    second = jax.jvp(first, (A,), (F,))[1]
    # Entry by entry against the terms it is the sum of: small eigenvalues give large ones.
    assert np.max(np.abs(second - wanted[1]) / np.max(np.abs(wanted[1]), 0)) < 1e-7


# ------------------------------------------------------------------------------------ what for


def log_euclidean(A, B):
    difference = jaxsvd.hermitian_map(jnp.log, A) - jaxsvd.hermitian_map(jnp.log, B)
    return jnp.sqrt(jnp.sum(jnp.abs(difference) ** 2))


def log_euclidean_by_scipy(A, B):
    return np.linalg.norm(scipy.linalg.logm(A) - scipy.linalg.logm(B))


def shampoo(G, H):
    """The change of weights by gradients G: L^(-1/4) G R^(-1/4), paired with H."""
    left = jaxsvd.hermitian_map(lambda w: (w + 0.1) ** -0.25, G @ jnp.conj(G).mT)
    right = jaxsvd.hermitian_map(lambda w: (w + 0.1) ** -0.25, jnp.conj(G).mT @ G)
    return jnp.sum((jnp.conj(H) * (left @ G @ right)).real)


def shampoo_by_scipy(G, H):
    def root(X):
        power = scipy.linalg.fractional_matrix_power
        return power(X + 0.1 * np.eye(len(X)), -0.25)

    return np.sum((np.conj(H) * (root(G @ adjoint(G)) @ G @ root(adjoint(G) @ G))).real)


def whitened(C, X):
    return jnp.sum(jnp.abs(jaxsvd.hermitian_map(jax.lax.rsqrt, C) @ X) ** 4)


def whitened_by_scipy(C, X):
    return np.sum(np.abs(np.linalg.inv(scipy.linalg.sqrtm(C)) @ X) ** 4)


APPLICATIONS = {
    "log-Euclidean distance": (log_euclidean, log_euclidean_by_scipy, (2.0, 2.0, 2.0, 0.5)),
    "log-Euclidean distance of a multiple of I": (
        log_euclidean,
        log_euclidean_by_scipy,
        (2.0, 2.0, 2.0, 2.0),
    ),
    "Shampoo": (shampoo, shampoo_by_scipy, (1.0, 1.0, 1.0, -1.0)),
    "whitening": (whitened, whitened_by_scipy, (3.0, 3.0, 1.0, 1.0)),
}


@functools.cache
def along_a_line(loss):
    """(A, direction, other) -> first and second derivatives along a line, in each order."""

    def all_of(A, E, other):
        def value(t):
            return loss(A + t * E, other)

        def forward(f):
            return lambda t: jax.jvp(f, (t,), (1.0,))[1]

        return (
            {"jvp": forward(value)(0.0), "vjp": jax.grad(value)(0.0)},
            {
                "forward over reverse": forward(jax.grad(value))(0.0),
                "reverse over forward": jax.grad(forward(value))(0.0),
                "reverse over reverse": jax.grad(jax.grad(value))(0.0),
            },
        )

    return jax.jit(all_of)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=["real", "complex"])
@pytest.mark.parametrize("name", list(APPLICATIONS))
def test_what_it_is_for_against_finite_differences_of_scipy(name, dtype):
    loss, by_scipy, values = APPLICATIONS[name]
    A, E = hermitian(values, dtype, 7), herm(gaussian((4, 4), dtype, 8))
    other = hermitian((1.0, 0.7, 0.7, 0.4), dtype, 9)
    first, second = along_a_line(loss)(A, E, other)
    h = 1e-3
    f = {i: by_scipy(A + i * h * E, other) for i in range(-3, 4)}
    slope = (45 * (f[1] - f[-1]) - 9 * (f[2] - f[-2]) + (f[3] - f[-3])) / (60 * h)
    bend = 270 * (f[1] + f[-1]) - 27 * (f[2] + f[-2]) + 2 * (f[3] + f[-3]) - 490 * f[0]
    for got in first.values():
        np.testing.assert_allclose(got, slope, rtol=1e-7)
    for got in second.values():
        np.testing.assert_allclose(got, bend / (180 * h**2), rtol=1e-5)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=["real", "complex"])
def test_sums_have_gradient_and_hessian_of_closed_forms(dtype):
    A = hermitian((2.0, 2.0, 2.0, 0.5), dtype, 7)
    E, F = (herm(gaussian((4, 4), dtype, seed)) for seed in (1, 2))
    inverse = np.linalg.inv(A)

    @jax.jit
    def derivatives_of_log_det(A):
        log_det = lambda A: jaxsvd.hermitian_sum(jnp.log, A)  # noqa: E731
        along = lambda t, u: log_det(A + t * E + u * F)  # noqa: E731
        second = {
            "forward over reverse": jax.jacfwd(jax.grad(along, 0), 1)(0.0, 0.0),
            "reverse over forward": jax.grad(jax.jacfwd(along, 0), 1)(0.0, 0.0),
            "reverse over reverse": jax.grad(jax.grad(along, 0), 1)(0.0, 0.0),
        }
        fourth = jax.jacfwd(jax.jacfwd(jax.jacfwd(jax.grad(along, 0), 0), 1), 1)(0.0, 0.0)
        return log_det(A), jax.grad(log_det)(A), second, fourth

    value, gradient, second, fourth = derivatives_of_log_det(A)
    np.testing.assert_allclose(value, np.linalg.slogdet(A)[1], rtol=1e-14)
    np.testing.assert_allclose(gradient, np.conj(inverse), atol=1e-13)
    for got in second.values():
        np.testing.assert_allclose(got, -np.trace(inverse @ E @ inverse @ F).real, rtol=1e-11)
    # d^4 log det: -tr of all cyclic orders of X = A^-1 E, Y = A^-1 F: 4 XXYY and 2 XYXY.
    X, Y = inverse @ E, inverse @ F
    wanted = -np.trace(4 * X @ X @ Y @ Y + 2 * X @ Y @ X @ Y).real
    np.testing.assert_allclose(fourth, wanted, rtol=1e-6)


def test_what_f_closes_over_is_differentiated():
    A, E = hermitian((2.0, 2.0, 2.0, 0.5), REAL, 7), herm(gaussian((4, 4), REAL, 1))

    def power(p, A):
        return jnp.sum(E * jaxsvd.hermitian_map(lambda w: w**p, A))

    w, Q = np.linalg.eigh(A)
    wanted = np.sum(E * ((Q * (w**-0.3 * np.log(w))) @ Q.T))
    np.testing.assert_allclose(jax.jit(jax.grad(power))(-0.3, A), wanted, rtol=1e-12)
    mixed = jax.jit(jax.grad(lambda p: jax.jvp(lambda A: power(p, A), (A,), (E,))[1]))(-0.3)
    h = 1e-4
    mapped = scipy.linalg.fractional_matrix_power

    def slope(p):
        return np.sum(E * (mapped(A + h * E, p) - mapped(A - h * E, p))) / (2 * h)

    np.testing.assert_allclose(mixed, (slope(-0.3 + h) - slope(-0.3 - h)) / (2 * h), rtol=1e-5)


# ------------------------------------------------------------------------------- input and shapes


@pytest.mark.parametrize("dtype", [REAL, COMPLEX], ids=["real", "complex"])
def test_other_than_hermitian_input(dtype):
    A = gaussian((4, 4), dtype, 1) + 6 * np.eye(4)
    low = np.tril(A, -1) + adjoint(np.tril(A, -1)) + np.diag(np.diag(A).real)
    nan = A + np.triu(np.full((4, 4), np.nan), 1)
    weights = gaussian((4, 4), dtype, 2)
    root = functools.partial(jaxsvd.hermitian_map, jnp.sqrt)
    total = functools.partial(jaxsvd.hermitian_sum, jnp.sqrt)
    np.testing.assert_allclose(root(A), scipy.linalg.sqrtm(herm(A)), atol=1e-13)
    np.testing.assert_allclose(
        root(nan, symmetrize_input=False), scipy.linalg.sqrtm(low), atol=1e-13
    )
    np.testing.assert_allclose(
        total(nan, symmetrize_input=False), np.trace(scipy.linalg.sqrtm(low)).real, rtol=1e-13
    )
    assert np.isnan(root(nan)).all()
    assert np.isnan(total(nan))
    for symmetrize in (True, False):

        def loss(A, symmetrize=symmetrize):
            mapped = root(A, symmetrize_input=symmetrize)
            return jnp.sum((weights * mapped).real) + total(A, symmetrize_input=symmetrize)

        gradient = jax.jit(jax.grad(loss))(A)
        np.testing.assert_allclose(gradient, finite_differences(loss, A), atol=1e-8)
        assert symmetrize or not np.triu(gradient, 1).any()


def test_batches_vmap_and_jit_are_one_program():
    A = np.stack([hermitian(v, COMPLEX, i) for i, v in enumerate(POSITIVE.values())][:6])
    A = A.reshape(2, 3, 4, 4)
    for function in (jaxsvd.hermitian_map, jaxsvd.hermitian_sum):
        f = functools.partial(function, jnp.log)
        together = f(A)
        assert together.shape == (A.shape if function is jaxsvd.hermitian_map else (2, 3))
        assert_same_bits(together, jax.vmap(jax.vmap(f))(A))
        assert_within(jax.jit(f)(A), together, 20)
        assert_within(together[1, 2], f(A[1, 2]), 20)
        assert f(np.zeros((5, 0, 0))).shape[0] == 5


@pytest.mark.x32
@pytest.mark.parametrize("dtype", [np.float32, np.complex64], ids=["float32", "complex64"])
@pytest.mark.parametrize("function", ["expm", "sqrtm", "inverse fourth root"])
def test_single_precision_at_ties(function, dtype):
    f, F = FUNCTIONS[function]
    E, G = (herm(gaussian((4, 4), dtype, seed)) for seed in (1, 2))
    weights = gaussian((4, 4), dtype, 3)

    def line(t, u, A):
        moved = A + t.astype(dtype) * E + u.astype(dtype) * G
        return jnp.sum((weights * jaxsvd.hermitian_map(f, moved)).real)

    @jax.jit
    def first_and_second(A):
        zero = jnp.zeros((), np.float32)
        return (
            jax.grad(line)(zero, zero, A),
            jax.grad(jax.grad(line), 1)(zero, zero, A),
            jax.jacfwd(jax.grad(line), 1)(zero, zero, A),
        )

    for values in ((2.0, 2.0, 2.0, 0.5), (2.0, 1.99, 1.9, 1e-2)):
        A = hermitian(values, dtype, 7)
        first, *second = first_and_second(A)
        exact = frechet(F, double(A), double(E)), frechet(F, double(A), double(E), double(G))
        for got, wanted in ((first, exact[0]), *((x, exact[1]) for x in second)):
            error = abs(float(got) - np.sum((double(weights) * wanted).real))
            assert error < 1e-4 * np.linalg.norm(wanted)


def test_scales_that_over_or_underflow_when_squared():
    for size in (1e150, 1e-150):
        A = size * hermitian((2.0, 2.0, 1.0), REAL, 3)
        root = lambda A: jnp.trace(jaxsvd.hermitian_map(jnp.sqrt, A))  # noqa: E731
        value, gradient = jax.value_and_grad(root)(A)
        np.testing.assert_allclose(value, np.sqrt(size) * (2 * np.sqrt(2) + 1), rtol=1e-13)
        wanted = np.linalg.inv(scipy.linalg.sqrtm(A / size)) / 2 / np.sqrt(size)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-10, atol=1e-12 / np.sqrt(size))


@pytest.mark.parametrize("name", ["hermitian_map", "hermitian_sum"])
def test_bad_input(name):
    function = getattr(jaxsvd, name)
    with pytest.raises(ValueError, match=f"^{name}: `a` must have shape .*, got "):
        function(jnp.exp, np.zeros((2, 3)))
    with pytest.raises(TypeError, match=f"^{name}: `f` must be a function, got "):
        function(3, np.eye(2))
    with pytest.raises(TypeError, match=f"^{name}: `symmetrize_input` must be True or False, got "):
        function(jnp.exp, np.eye(2), symmetrize_input="L")
    with pytest.raises(ValueError, match=f"^{name}: `f` must act elementwise, got "):
        function(lambda w: w / jnp.max(w), np.eye(2))
    with pytest.raises(ValueError, match=f"^{name}: .*must satisfy 0 <= near_tie < 1, got 2"):
        function(jnp.exp, np.eye(2), near_tie=2)


def test_derivatives_of_fourth_order_are_refused_by_name():
    def line(t):
        return jaxsvd.hermitian_map(jnp.exp, t * jnp.eye(2))

    for _ in range(4):
        line = functools.partial(lambda f, t: jax.jvp(f, (t,), (1.0,))[1], line)
    with pytest.raises(
        ValueError, match=r"^hermitian_map: derivatives up to the third order exist"
    ):
        jax.eval_shape(line, 1.0)
