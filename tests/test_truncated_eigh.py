"""Extreme eigenpairs of dense, sparse and implicit matrices: residuals, gradients, second order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same_bits, eps, gaussian, orthonormal
from jax.experimental import sparse

import jaxsvd
from jaxsvd import operators

N, K = 288, 4
I = np.arange(1, N + 1)
SIGNS = np.where(I % 2, 1.0, -1.0)
SPECTRA = {
    "slow": I**-0.5,
    "both ends": SIGNS * I**-0.5,
    "pairs +-s": np.r_[2.0, -2.0, 1.6, -1.6, np.linspace(-1, 1, N - 4)],
    "ties": np.r_[3.0, 3.0, 3.0, 2.0, -2.5, -2.5, -2.5, -2.5, SIGNS[8:] / I[8:]],
    "negative": I**-0.5 - 2.0,
    "rank two": np.where(I <= 2, 3.0 - I, 0.0),
    "zero": 0.0 * I,
}
ENDS = ("LA", "SA", "LM")


def adjoint(X):  # of an array of NumPy or of JAX
    return X.conj().swapaxes(-1, -2)


def key_of(which, w):
    return {"LA": w, "SA": -w, "LM": np.abs(w)}[which]


def with_eigenvalues(w, dtype=np.float64, seed=0):
    Q = orthonormal(N, N, dtype, seed)
    A = (Q * w) @ adjoint(Q)
    return ((A + adjoint(A)) / 2).astype(dtype)


@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("name", SPECTRA)
def test_promised_residual(name, which):
    w = SPECTRA[name]
    A = with_eigenvalues(w)
    result, info = jaxsvd.truncated_eigh(A, K, which, method="krylov", return_info=True)
    size = np.abs(w).max()
    found, Q = np.asarray(result.eigenvalues), np.asarray(result.eigenvectors)
    residuals = np.linalg.norm(A @ Q - Q * found, axis=0)
    assert bool(info.converged)
    assert residuals.max() <= 2e-10 * size
    np.testing.assert_allclose(info.residuals, residuals, atol=1e-14 * size)
    np.testing.assert_allclose(Q.T @ Q, np.eye(K), atol=1e-14 * N**0.5)
    key = np.sort(key_of(which, w))[::-1]
    np.testing.assert_allclose(key_of(which, found), key[:K], atol=1e-12 * size)
    assert (np.diff(key_of(which, found)) <= 1e-12 * size).all()  # wanted ones first
    np.testing.assert_allclose(info.gap, key[K - 1] - key[K], atol=1e-6 * size)
    assert int(info.rank) == np.sum(np.abs(found) > 1e-12 * size)
    if size:
        assert (float(info.gradient_error) > 1e-3) == (key[K - 1] - key[K] < 1e-12)


def test_a_tie_of_magnitudes_across_the_cut_is_flagged():
    A = with_eigenvalues(SPECTRA["pairs +-s"])
    for method in ("krylov", "full"):
        result, info = jaxsvd.truncated_eigh(A, 3, "LM", method=method, return_info=True)
        assert float(info.gradient_error) > 1e-3
        assert float(info.gap) < 1e-12
        assert np.isfinite(result.eigenvectors).all()
        _, info = jaxsvd.truncated_eigh(A, 4, "LM", method=method, return_info=True)
        assert float(info.gradient_error) < 1e-8


@pytest.mark.x32
@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-20])
def test_float32(scale):
    A = (with_eigenvalues(SPECTRA["both ends"]) * scale).astype(np.float32)
    G = gaussian((N, N), np.float32, 3)

    def loss(A, method):
        w, Q = jaxsvd.truncated_eigh(A, K, "LM", method=method)
        return jnp.sum(G * ((Q * (w / np.float32(scale))[None, :]) @ Q.T))

    (value, by_krylov), (_, exact) = (
        jax.jit(jax.value_and_grad(functools.partial(loss, method=method)))(A)
        for method in ("krylov", "full")
    )
    assert np.isfinite(value)
    exact = np.float64(exact)
    error = np.linalg.norm(np.float64(by_krylov) - exact) / np.linalg.norm(exact)
    assert error < 2e-4


# ----------------------------------------------------------------------------------- gradients

WEIGHTS = np.arange(1.0, K + 1)
APART = {  # distinct at either end
    "LA": np.r_[2.0, 1.8, 1.7, 1.5, np.linspace(-1, 1.3, N - K)],
    "SA": -np.r_[2.0, 1.8, 1.7, 1.5, np.linspace(-1, 1.3, N - K)],
    "LM": np.r_[2.0, -1.8, 1.7, -1.5, np.linspace(-1.3, 1.2, N - K)],
}


def of_vectors(w, Q):
    weighted = Q * (WEIGHTS * w**2)[None, :].astype(Q.dtype)
    return jnp.sum(jnp.real(weighted @ adjoint(Q)) * gaussian((N, N), seed=1)) + jnp.sum(
        jnp.abs(Q[:3]) ** 4 * WEIGHTS[None, :]
    )


def exact_gradient(A, which):
    """Of the loss, in JAX's convention, on Hermitian matrices, from all eigenpairs in NumPy."""
    w, Q = np.linalg.eigh(A)
    order = np.argsort(-key_of(which, w))
    w, Q = w[order], Q[:, order]
    ct_w, ct_Q = jax.grad(of_vectors, (0, 1))(jnp.asarray(w[:K]), jnp.asarray(Q[:, :K]))
    gQ, gw = np.zeros_like(Q), np.zeros_like(w)
    gQ[:, :K], gw[:K] = np.conj(ct_Q), ct_w
    D = 1 / (w[None, :] - w[:, None] + np.eye(N)) - np.eye(N)
    inner = D * (adjoint(Q) @ gQ)
    A_bar = Q @ ((inner + adjoint(inner)) / 2 + np.diag(gw)) @ adjoint(Q)
    return np.conj(A_bar)


def relative(x, y):
    return float(np.linalg.norm(np.asarray(x) - y) / np.linalg.norm(y))


@pytest.mark.parametrize("dtype", [np.float64, np.complex128], ids=["real", "complex"])
@pytest.mark.parametrize("which", ENDS)
def test_gradient_is_that_of_the_exact_pairs(which, dtype):
    A = with_eigenvalues(APART[which], dtype)

    def loss(A):
        return of_vectors(*jaxsvd.truncated_eigh(A, K, which, method="krylov"))

    assert relative(jax.jit(jax.grad(loss))(A), exact_gradient(A, which)) < 1e-8


def test_gradient_of_a_sparse_matrix_is_that_of_its_values():
    rng = np.random.default_rng(3)
    A = np.diag(APART["LM"])
    for _ in range(2):  # rotations keep the eigenvalues, and most entries zero
        pairs = rng.permutation(N).reshape(-1, 2)
        x, y = A[pairs[:, 0]], A[pairs[:, 1]]
        A[pairs[:, 0]], A[pairs[:, 1]] = 0.8 * x - 0.6 * y, 0.6 * x + 0.8 * y
        x, y = A[:, pairs[:, 0]], A[:, pairs[:, 1]]
        A[:, pairs[:, 0]], A[:, pairs[:, 1]] = 0.8 * x - 0.6 * y, 0.6 * x + 0.8 * y
    pattern = np.argwhere(A)
    place = tuple(pattern.T)

    def loss(data, symmetrize):
        matrix = sparse.BCOO((data, jnp.asarray(pattern)), shape=(N, N))
        result = jaxsvd.truncated_eigh(matrix, K, "LM", symmetrize_input=symmetrize)
        return of_vectors(*result)

    wanted = np.where(A != 0, exact_gradient(A, "LM"), 0)
    for symmetrize in (None, True):
        gradient = jax.jit(jax.grad(functools.partial(loss, symmetrize=symmetrize)))(A[place])
        found = np.zeros_like(A)
        found[place] = gradient
        if symmetrize is None:  # defined along Hermitian matrices only
            found = (found + found.T) / 2
        assert relative(found, wanted) < 1e-8


def test_gradient_of_an_operators_parameters():
    B, d = orthonormal(N, N, np.float64, 5), APART["SA"]

    def loss(d):
        A = operators.LowRank(jnp.asarray(B), d, jnp.asarray(B.T))
        return of_vectors(*jaxsvd.truncated_eigh(A, K, "SA"))

    wanted = np.diag(B.T @ exact_gradient((B * d) @ B.T, "SA") @ B)
    assert relative(jax.jit(jax.grad(loss))(d), wanted) < 1e-8


SECOND = {  # ties inside the block of three
    "LA": np.r_[2.0, 2.0, 1.9, np.linspace(-1, 1.2, N - 3)],
    "LM": np.r_[2.0, -2.0, 2.0, np.linspace(-1.2, 1.2, N - 3)],
}


@pytest.mark.parametrize(("which", "dtype"), [("LM", np.float64), ("LA", np.complex128)])
def test_second_order_through_the_iterative_core_at_ties(which, dtype):
    A = with_eigenvalues(SECOND[which], dtype, 7)
    E = gaussian((N, N), dtype, 8) / N**0.5
    G = gaussian((N, N), dtype, 9) / N

    def through_core(A):
        Q, C = jaxsvd.core_eigh(A, 3, which, method="krylov")
        return jnp.sum((G * (Q @ C @ C @ adjoint(Q))).real)

    def through_map(A):  # which has derivatives by divided differences
        def f(w):
            return jnp.where((jnp.abs(w) if which == "LM" else w) > 1.6, w * w, 0)

        return jnp.sum((G * jaxsvd.hermitian_map(f, A, near_tie=1e-8)).real)

    @jax.jit
    def products(A):
        gradient = jax.grad(through_core)
        return (
            jax.jvp(gradient, (A,), (E,))[1],
            jax.grad(lambda A: jax.jvp(through_core, (A,), (E,))[1])(A),
            jax.grad(lambda A: jnp.sum((gradient(A) * E).real))(A),
        )

    wanted = jax.jit(lambda A: jax.jvp(jax.grad(through_map), (A,), (E,))[1])(A)
    for got in products(A):
        assert relative(got, wanted) < 1e-9


# ------------------------------------------------------------------------- options and arguments


def test_vmap_is_a_leading_axis():
    stack = np.stack([with_eigenvalues(APART[which]) for which in ("LA", "LM")])
    function = functools.partial(jaxsvd.truncated_eigh, k=3, which="LA", method="krylov")
    together = function(stack)
    assert_same_bits(together, jax.vmap(function)(stack))
    for i in range(2):
        np.testing.assert_allclose(together[0][i], function(stack[i])[0], rtol=1e-12)


def test_start_strict_and_iteration_limit():
    A = with_eigenvalues(SPECTRA["both ends"])
    solve = functools.partial(jaxsvd.truncated_eigh, k=K, method="krylov", return_info=True)
    cold, info = solve(A)
    _, warm = solve(A, start=cold)
    assert int(warm.iterations) < int(info.iterations)
    result, info = solve(A, max_iterations=1)
    assert not bool(info.converged)
    assert np.isfinite(result.eigenvectors).all()
    strict, _ = solve(A, max_iterations=1, strict=True)
    assert np.isnan(strict.eigenvectors).all()


def test_an_operator_that_is_not_hermitian_does_not_converge():
    A = operators.Dense(jnp.asarray(gaussian((N, N), seed=3)))
    _, info = jaxsvd.truncated_eigh(A @ A, K, "LM", max_iterations=5, return_info=True)
    assert not bool(info.converged)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_in_nan_out(value):
    A = with_eigenvalues(SPECTRA["slow"])
    A[3, 4] = value
    result, info = jaxsvd.truncated_eigh(A, K, method="krylov", return_info=True)
    assert all(np.isnan(x).all() for x in result)
    assert not bool(info.converged)


@pytest.mark.parametrize("name", ["truncated_eigh", "core_eigh"])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "`k` must satisfy 1 <= k <= 3, got 0"),
        ((4,), ValueError, "`k` must satisfy 1 <= k <= 3, got 4"),
        ((1.0,), TypeError, "`k` must be an int, got float 1.0"),
        ((1, "BE"), ValueError, "`which` must be one of 'LA', 'SA', 'LM', got str 'BE'"),
        ({"method": "gram"}, ValueError, "`method` must be one of .*, got str 'gram'"),
        ({"tol": 1e-30}, ValueError, "`tol` must be at least .*, got 1e-30"),
        ({"start": np.eye(3)}, TypeError, "`start` must be an earlier result, got ndarray"),
        ({"symmetrize_input": "L"}, TypeError, "`symmetrize_input` must be True or False, got str"),
    ],
)
def test_bad_arguments(name, arguments, error, message):
    keywords = arguments if isinstance(arguments, dict) else {}
    arguments = (1,) if keywords else arguments
    with pytest.raises(error, match=f"^{name}: {message}"):
        getattr(jaxsvd, name)(np.eye(3), *arguments, **keywords)


def test_matrices_outside_memory_are_refused():
    blocks = operators.RowBlocks(np.eye(6))
    with pytest.raises(TypeError, match=r"^truncated_eigh: `a` must be a matrix in memory.*, got"):
        jaxsvd.truncated_eigh(blocks, 1)


def test_reported_error_is_of_rounding_size_for_all_pairs():
    result, info = jaxsvd.truncated_eigh(np.diag([1.0, 2.0, 2.0]), 3, return_info=True)
    np.testing.assert_allclose(result.eigenvalues, [2, 2, 1], rtol=1e-15)
    assert float(info.gradient_error) <= 10 * eps(np.float64)
