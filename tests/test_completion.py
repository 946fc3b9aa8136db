"""Matrix completion against dense NumPy, conditions of optimality and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import jaxsvd
from jaxsvd.models import completion
from tests.helpers import FLOAT32, FLOAT64, gaussian

M, N, RANK = 24, 18, 3


def problem(dtype=np.float64, share: float = 0.6, noise: float = 0.1, seed: int = 0):
    """A matrix of rank 3, a mask, and what is observed: row 5 and column 7 are empty."""
    rng = np.random.default_rng(seed)
    L = gaussian((M, RANK), seed=seed) @ gaussian((RANK, N), seed=seed + 1)
    mask = rng.random((M, N)) < share
    mask[5], mask[:, 7] = False, False
    Y = L + noise * gaussian((M, N), seed=seed + 2)
    rows, columns = np.nonzero(mask)
    order = rng.permutation(rows.size)
    indices = jnp.asarray(np.stack([rows, columns], 1)[order])
    return L, mask, Y, sparse.BCOO((jnp.asarray(Y[mask][order], dtype), indices), shape=(M, N))


def dense_soft_impute(Y, mask, weight, steps: int = 3000):
    """The plain algorithm with full SVDs: shares nothing but the definition."""
    Z = np.zeros_like(Y)
    for _ in range(steps):
        U, s, Vh = np.linalg.svd(np.where(mask, Y, Z), full_matrices=False)
        Z = (U * np.maximum(s - weight, 0)) @ Vh
    return Z


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("weight", [3.0, 0.7])
def test_soft_impute_is_the_optimum(dtype, weight):
    _, mask, Y, a = problem(dtype)
    # A step as small as the default, 1e-5 in single precision, is up to ten times as far from it.
    asked = 3e-6 if dtype == np.float32 else None
    result, info = completion.soft_impute(a, weight, 12, tol=asked, return_info=True)
    Z = np.asarray(result.to_dense(), np.float64)
    desired = dense_soft_impute(Y, mask, weight)
    tol = 1e-4 if dtype == np.float32 else 1e-8
    assert result.U.dtype == dtype
    assert np.linalg.norm(Z - desired) <= tol * np.linalg.norm(desired)
    assert bool(info.converged)
    assert not bool(info.exceeded)
    # The conditions of optimality: R V = weight U, |R|_2 <= weight.
    rank = int(info.rank)
    U, V = np.asarray(result.U, np.float64), np.asarray(result.Vh, np.float64).T
    R = np.where(mask, Y - Z, 0)
    assert np.abs(R @ V[:, :rank] - weight * U[:, :rank]).max() < 10 * tol * weight
    assert np.linalg.norm(R, 2) < weight * (1 + 10 * tol)
    np.testing.assert_allclose(U[:, :rank].T @ U[:, :rank], np.eye(rank), atol=10 * tol)
    assert not U[:, rank:].any()
    # What has no entries comes out zero.
    assert np.abs(Z[5]).max() < tol
    assert np.abs(Z[:, 7]).max() < tol


def test_large_weight_gives_zero_and_small_rank_is_reported():
    _, mask, Y, a = problem()
    largest = np.linalg.norm(np.where(mask, Y, 0), 2)
    result, info = completion.soft_impute(a, 1.001 * largest, 12, return_info=True)
    assert not result.to_dense().any()
    assert bool(info.converged)
    slope = jax.grad(lambda w: jnp.sum(completion.soft_impute(a, w, 12).s))(1.001 * largest)
    assert slope == 0
    _, info = completion.soft_impute(a, 0.7, 1, return_info=True, max_iterations=300)
    assert bool(info.exceeded)
    assert not bool(info.converged)
    _, info = completion.soft_impute(a, 0.7, 12, return_info=True, max_iterations=2)
    assert int(info.iterations) == 2
    assert not bool(info.converged)


def loss(weight, data, a, target):
    observed = sparse.BCOO((data, a.indices), shape=a.shape)
    Z = completion.soft_impute(observed, weight, 10, tol=1e-13)
    return jnp.sum((Z.to_dense() - target) ** 2)


def test_derivatives_in_weight_and_values():
    L, mask, Y, a = problem()
    weight, step = 1.5, 1e-5
    target = jnp.asarray(L)
    f = jax.jit(lambda w, data: loss(w, data, a, target))
    gradient = jax.jit(jax.grad(f, (0, 1)))
    by_weight, by_data = gradient(weight, a.data)
    up, down = gradient(weight + step, a.data)[0], gradient(weight - step, a.data)[0]

    def oracle(weight, Y):
        return np.sum((dense_soft_impute(Y, mask, weight, 1500) - L) ** 2)

    slope = (oracle(weight + step, Y) - oracle(weight - step, Y)) / (2 * step)
    assert abs(by_weight / slope - 1) < 1e-6
    direction = np.where(mask, gaussian((M, N), seed=9), 0)
    slope = (oracle(weight, Y + step * direction) - oracle(weight, Y - step * direction)) / (
        2 * step
    )
    i, j = np.asarray(a.indices).T
    assert abs(float(by_data @ direction[i, j]) / slope - 1) < 1e-6
    # Forward mode is the same map; the second derivative that of the first.
    forward = jax.jit(jax.jacfwd(f))(weight, a.data)
    assert abs(forward / by_weight - 1) < 1e-9
    curvature = jax.jit(jax.grad(jax.grad(f)))(weight, a.data)
    assert abs(curvature / ((up - down) / (2 * step)) - 1) < 1e-5


def test_derivative_of_single_values():
    _, _, _, a = problem()
    f = lambda w: completion.soft_impute(a, w, 10, tol=1e-13).s[:3]  # noqa: E731
    slopes = jax.jit(jax.jacfwd(f))(1.5)
    step = 1e-5
    desired = (f(1.5 + step) - f(1.5 - step)) / (2 * step)
    np.testing.assert_allclose(slopes, desired, rtol=1e-6)


def test_path_equals_single_weights_and_takes_fewer_iterations():
    _, _, _, a = problem()
    weights = jnp.array([4.0, 2.0, 1.0])
    weights, results, info = completion.path(a, 12, weights, return_info=True)
    for i, weight in enumerate(weights):
        alone, cold = completion.soft_impute(a, weight, 12, return_info=True)
        one = jax.tree.map(lambda x, i=i: x[i], results)
        np.testing.assert_allclose(one.to_dense(), alone.to_dense(), atol=1e-8)
    assert int(info.iterations[-1]) < int(cold.iterations)
    found, results = completion.path(a, 4, tol=1e-6)
    assert found.shape == (10,)
    assert results.U.shape == (10, M, 4)
    again, more = completion.soft_impute(a, weights[-1], 12, start=alone, return_info=True)
    assert int(more.iterations) <= 3
    np.testing.assert_allclose(again.to_dense(), alone.to_dense(), atol=1e-8)


def test_vmap_over_weights():
    _, _, _, a = problem()
    weights = jnp.array([3.0, 1.5])
    f = lambda w: completion.soft_impute(a, w, 10).to_dense()  # noqa: E731
    together = jax.jit(jax.vmap(f))(weights)
    for Z, weight in zip(together, weights, strict=True):
        np.testing.assert_allclose(Z, f(weight), atol=1e-8)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_thresholding_recovers(dtype):
    rng = np.random.default_rng(3)
    n, rank = 100, 2
    left, right = rng.standard_normal((n, rank)), rng.standard_normal((rank, n))
    truth = left @ right
    mask = rng.random((n, n)) < 0.5
    a = sparse.BCOO.fromdense(jnp.asarray(np.where(mask, truth, 0), dtype))
    result, info = completion.singular_value_thresholding(a, 5, tol=1e-4, return_info=True)
    error = np.linalg.norm(np.asarray(result.to_dense(), np.float64) - truth)
    assert error <= 2.5e-4 * np.linalg.norm(truth)
    assert int(info.rank) == rank
    assert bool(info.converged)
    np.testing.assert_allclose(
        completion.entries(result, *np.nonzero(mask)), truth[mask], atol=5e-3
    )


def test_thresholding_is_the_papers_iteration():
    """The same iterates as with full SVDs, to what the subspace iteration leaves."""
    _, mask, Y, a = problem(noise=0.0, share=0.8)
    tau, delta, steps = 30.0, 1.3, 400
    size = np.linalg.norm(Y[mask])
    y = np.where(mask, Y, 0)
    y *= np.ceil(tau / (delta * np.linalg.norm(y, 2))) * delta
    for _ in range(steps):
        U, s, Vh = np.linalg.svd(y)
        X = (U[:, :N] * np.maximum(s - tau, 0)) @ Vh
        if np.linalg.norm((X - Y)[mask]) <= 1e-6 * size:
            break
        y += delta * np.where(mask, Y - X, 0)
    found = completion.singular_value_thresholding(
        a, 10, threshold=tau, step=delta, tol=1e-6, max_iterations=steps
    )
    np.testing.assert_allclose(found.to_dense(), X, atol=1e-4 * np.abs(X).max())


def test_nothing_of_the_matrix_size_is_formed():
    m, n, count = 50_000, 40_000, 3000  # dense, 8 GB in float32
    rng = np.random.default_rng(0)
    place = rng.choice(m * n, count, replace=False)
    indices = jnp.asarray(np.stack(np.divmod(place, n), 1))
    a = sparse.BCOO((jnp.ones(count, np.float32), indices), shape=(m, n))
    f = lambda w: jnp.sum(completion.soft_impute(a, w, 2, max_iterations=3).s)  # noqa: E731
    compiled = jax.jit(jax.grad(f)).lower(0.5).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 200e6


def test_bad_input():
    _, _, _, a = problem()
    twice = sparse.BCOO((jnp.ones(3), jnp.array([[0, 1], [2, 2], [0, 1]])), shape=(4, 4))
    with pytest.raises(ValueError, match=r"each entry once, got \(0, 1\) twice"):
        completion.soft_impute(twice, 1.0, 2)
    nan = sparse.BCOO((a.data.at[3].set(jnp.nan), a.indices), shape=a.shape)
    i, j = np.asarray(a.indices[3])
    with pytest.raises(ValueError, match=rf"finite values, got nan at \({i}, {j}\)"):
        completion.singular_value_thresholding(nan, 2)
    none = sparse.BCOO((jnp.ones(1), jnp.array([[4, 4]])), shape=(4, 4))  # padding alone
    with pytest.raises(ValueError, match="at least one entry"):
        completion.soft_impute(none, 1.0, 2)
    with pytest.raises(ValueError, match="soft_impute: `max_rank` must satisfy 1 <="):
        completion.soft_impute(a, 1.0, 19)
    with pytest.raises(ValueError, match="`weight` must be a number > 0"):
        completion.soft_impute(a, -1.0, 2)
    with pytest.raises(TypeError, match="must be a BCOO or BCSR matrix"):
        completion.soft_impute(jnp.eye(3), 1.0, 2)
    with pytest.raises(ValueError, match="`start` must be an earlier result of shape"):
        completion.soft_impute(a, 1.0, 2, start=jaxsvd.svd(jnp.eye(3)))
    with pytest.raises(ValueError, match=r"`weights` must be > 0"):
        completion.path(a, 2, jnp.array([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"have one shape \(p,\)"):
        completion.entries(completion.soft_impute(a, 3.0, 2), jnp.arange(3), jnp.arange(2))
    with pytest.raises(TypeError, match="must hold integers"):
        completion.entries(completion.soft_impute(a, 3.0, 2), jnp.ones(2), jnp.arange(2))


def test_padding_does_not_count():
    _, _, _, a = problem()
    padded = sparse.BCOO(
        (jnp.append(a.data, 7.0), jnp.concatenate([a.indices, jnp.array([[M, N]])])), shape=a.shape
    )
    expected = completion.soft_impute(a, 1.5, 6).to_dense()
    np.testing.assert_allclose(completion.soft_impute(padded, 1.5, 6).to_dense(), expected)
    outside = completion.entries(completion.soft_impute(a, 1.5, 6), jnp.array([M]), jnp.array([0]))
    assert outside[0] == 0
