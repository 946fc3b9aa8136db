"""Data that arrives: sketches against the bound of their paper, merged, saved; appended rows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsvd
from jaxsvd import streaming
from tests.helpers import (
    COMPLEX128,
    FLOAT32,
    FLOAT64,
    adjoint,
    assert_same_bits,
    double,
    eps,
    with_values,
)

M, N, K = 240, 40, 4
DECAY = 1 / np.arange(1, N + 1)


def batches(A, height: int = 60):
    return [A[i : i + height] for i in range(0, len(A), height)]


def sketch(A, k: int = K, key: int = 0, **options):
    def first(key):
        return streaming.init(A.shape[1], k, dtype=A.dtype, key=key, **options)

    # The key is static, so each would compile anew; under the name of key 0 they share programs.
    state = jax.tree.structure(first(0)).unflatten(jax.tree.leaves(first(key)))
    for batch in batches(A):
        state = streaming.update(state, batch)
    return state


# ------------------------------------------------------------------------------------- the sketch


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, COMPLEX128])
def test_one_pass_is_exact_for_low_rank(dtype):
    A = with_values([3, 2, 1, 0.5], M, N, dtype)
    result, error = streaming.finalize(sketch(A))
    assert result.U is None
    V = adjoint(double(result.Vh))
    # Products with A^H A: values to eps s_1^2 / s_i.
    np.testing.assert_allclose(result.S, [3, 2, 1, 0.5], atol=400 * eps(dtype))
    assert np.linalg.norm(A - (A @ V) @ adjoint(V)) < 400 * eps(dtype)
    assert error <= 30 * eps(dtype) ** 0.5
    largest = np.take_along_axis(V, np.argmax(np.abs(V), 0)[None], 0)[0]
    assert np.all(np.abs(largest.imag) < 1e-6)
    assert np.all(largest.real > 0)


def nystrom(A, omega, k):
    """W (Omega^H W)^+ W^H cut at k, by NumPy alone."""
    W = adjoint(A) @ (A @ omega)
    values, X = np.linalg.eigh(W @ np.linalg.pinv(adjoint(omega) @ W) @ adjoint(W))
    return values[::-1][:k], X[:, ::-1][:, :k]


def test_the_estimate_is_nystroms_and_its_error_certified():
    A = with_values(DECAY, M, N)
    state = sketch(A)
    result, error = streaming.finalize(state)
    values, X = nystrom(A, double(state.sketch.omega), K)
    np.testing.assert_allclose(double(result.S) ** 2, values, rtol=1e-9)
    V = double(result.Vh).T
    np.testing.assert_allclose(V @ V.T, X @ X.T, atol=1e-9)
    norm = np.linalg.norm(A)
    nuclear = np.linalg.norm(A.T @ A - (X * values) @ X.T, "nuc")
    np.testing.assert_allclose(float(error), np.sqrt(nuclear) / norm, rtol=1e-9)
    assert np.linalg.norm(A - A @ V @ V.T) <= float(error) * norm
    exact = np.linalg.svd(A, compute_uv=False)[:K]
    assert np.all(double(result.S) <= exact * (1 + 1e-12))


@pytest.mark.parametrize(("columns", "keys"), [(2 * K + 1, 20), (3 * K, 20)])
def test_subspace_is_within_the_bound_of_the_paper(columns, keys):
    A = with_values(DECAY, M, N)
    tail = np.sum(DECAY[K:] ** 2)
    bound = (1 + K / (columns - K - 1)) * tail
    nuclear, projected = [], []
    for key in range(keys):
        result, error = streaming.finalize(sketch(A, columns=columns, key=key))
        V = double(result.Vh).T
        nuclear.append((float(error) * np.linalg.norm(A)) ** 2)
        projected.append(np.linalg.norm(A - A @ V @ V.T) ** 2)
    assert np.mean(nuclear) <= bound
    assert np.mean(projected) <= bound
    # Better than chance by far: within the bound, and near the best there is.
    assert tail <= np.mean(projected) <= 1.3 * tail


@pytest.mark.x32
def test_merging_gives_the_sketch_of_all_rows():
    A = with_values(DECAY, M, N, np.float32)
    whole = sketch(A)
    workers = [sketch(A[i::3]) for i in range(3)]  # whatever rows they saw, in whatever order
    for order in itertools.permutations(range(3), 3):
        first, second, third = (workers[i] for i in order)
        merged = streaming.merge(streaming.merge(first, second), third)
        W, all_rows = (double(s.sketch.W) * double(s.sketch.scale) ** 2 for s in (merged, whole))
        assert np.abs(W - all_rows).max() <= 10 * eps(np.float32) * np.abs(all_rows).max()
        assert int(merged.sketch.rows) == M
        result, error = streaming.finalize(merged)
        expected, its_error = streaming.finalize(whole)
        np.testing.assert_allclose(result.S, expected.S, rtol=1e-4)
        np.testing.assert_allclose(error, its_error, rtol=1e-3)


def test_a_state_saved_and_restored_goes_on_to_the_same_bits(tmp_path):
    A = with_values(DECAY, M, N, np.float32)
    state = streaming.init(N, K, dtype=np.float32)
    for batch in batches(A)[:2]:
        state = streaming.update(state, batch)
    np.savez(tmp_path / "state.npz", *jax.tree.leaves(state))
    with np.load(tmp_path / "state.npz") as file:
        leaves = [jnp.asarray(file[name]) for name in file.files]
    restored = jax.tree.structure(streaming.init(N, K, dtype=np.float32)).unflatten(leaves)
    for batch in batches(A)[2:]:
        restored = streaming.update(restored, batch)
    assert_same_bits(streaming.finalize(restored), streaming.finalize(sketch(A)))


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_squares_neither_overflow_nor_vanish(size):
    A = with_values(DECAY, M, N, np.float32)
    result, error = streaming.finalize(sketch((A * np.float32(size)).astype(np.float32)))
    expected, its_error = streaming.finalize(sketch(A))
    np.testing.assert_allclose(double(result.S) / size, expected.S, rtol=1e-4)
    np.testing.assert_allclose(error, its_error, rtol=1e-3)
    # The scale is found with the first rows, and found again where later ones are much larger.
    late = np.concatenate([A[:60] * np.float32(1e-20), A[60:]]).astype(np.float32)
    none = np.concatenate([0 * A[:60], A[60:]])
    found, expected = (streaming.finalize(sketch(a))[0].S for a in (late, none))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_sums_over_many_rows_lose_nothing():
    rows = np.full((8, 2), 0.1, np.float32)
    step = jax.jit(
        lambda state: jax.lax.fori_loop(0, 20_000, lambda _, s: streaming.update(s, rows), state)
    )
    result, _ = streaming.finalize(step(streaming.init(2, 1, dtype=np.float32)))
    exact = np.sqrt(8 * 20_000 * 2) * double(np.float32(0.1))
    assert abs(double(result.S)[0] / exact - 1) < 4 * eps(np.float32)


@pytest.mark.x32
def test_nan_gives_nan_and_zeros_give_zeros():
    A = with_values(DECAY, M, N, np.float32)
    spoiled = A.copy()
    spoiled[100, 3] = np.nan
    result, _ = streaming.finalize(sketch(spoiled))
    assert np.isnan(result.S).all()
    assert np.isnan(result.Vh).all()
    result, error = streaming.finalize(sketch(0 * A))
    assert np.all(result.S == 0)
    assert error == 0
    assert np.isfinite(result.Vh).all()


# --------------------------------------------------------------------------------- appended rows


@pytest.mark.parametrize("dtype", [FLOAT32, COMPLEX128])
def test_appended_rows_give_the_svd_of_all(dtype):
    A = with_values(np.arange(6, 0, -1), 30, 12, dtype)  # of rank 6: nothing is cut
    result = jaxsvd.svd(A[:10], full_matrices=False)
    result = jaxsvd.svd_update(result, A[10:20], 6)
    result = jaxsvd.svd_update(result, A[20:])
    U, S, Vh = map(double, result)
    np.testing.assert_allclose(S, np.arange(6, 0, -1), rtol=50 * eps(dtype))
    assert np.abs((U * S) @ Vh - A).max() < 50 * eps(dtype)
    assert np.abs(adjoint(U) @ U - np.eye(6)).max() < 50 * eps(dtype)
    without = jaxsvd.svd_update(jaxsvd.SVDResult(None, *jaxsvd.svd(A[:10], False)[1:]), A[10:], 6)
    assert without.U is None
    np.testing.assert_allclose(without.S, S, rtol=50 * eps(dtype))


def test_what_appending_loses_is_what_was_cut():
    A = with_values(DECAY, M, N)
    result = jaxsvd.svd(A[:60], full_matrices=False)
    result = jaxsvd.SVDResult(result.U[:, :8], result.S[:8], result.Vh[:8])
    for batch in batches(A)[1:]:
        stack = np.concatenate([double(result.S)[:, None] * double(result.Vh), batch])
        result = jaxsvd.svd_update(result, batch)
        np.testing.assert_allclose(result.S, np.linalg.svd(stack, compute_uv=False)[:8], rtol=1e-12)
    assert result.U.shape == (M, 8)
    U, S, Vh = map(double, result)
    best = np.sqrt(np.sum(DECAY[8:] ** 2))
    assert best <= np.linalg.norm(A - (U * S) @ Vh) <= 1.5 * best


def test_appending_is_differentiable():
    A = with_values(np.arange(3, 0, -1), 5, 4)
    rows = with_values([2, 1], 2, 4, seed=5)

    def loss(rows):
        result = jaxsvd.svd_update(jaxsvd.svd(A, full_matrices=False), rows, 2)
        return jnp.sum(result.S**3) + jnp.sum(result.Vh[0] ** 3)

    gradient = jax.grad(loss)(jnp.asarray(rows))
    direction = with_values([1, 1], 2, 4, seed=9)
    step = 1e-6
    slope = (loss(rows + step * direction) - loss(rows - step * direction)) / (2 * step)
    np.testing.assert_allclose(np.sum(double(gradient) * direction), slope, rtol=1e-6)


# -------------------------------------------------------------------------------------- bad input


STATE = streaming.init(N, K)
RESULT = jaxsvd.SVDResult(None, jnp.ones(2), jnp.eye(2, 5))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: streaming.init(3, 4), ValueError, "init: `k` must satisfy 1 <= k <= 3, got 4"),
        (
            lambda: streaming.init(9, 4, columns=5),
            ValueError,
            "must satisfy 6 <= columns",
        ),
        (
            lambda: streaming.init(9, 4, dtype=np.int32),
            TypeError,
            "must be a float or complex",
        ),
        (
            lambda: streaming.update(3, np.ones((2, N))),
            TypeError,
            "`state` must come from",
        ),
        (
            lambda: streaming.update(STATE, np.ones((2, 3))),
            ValueError,
            r"got \(2, 3\)",
        ),
        (lambda: streaming.update(STATE, np.ones(N)), ValueError, r"shape \(b, 40\), got \(40,\)"),
        (lambda: streaming.update(STATE, np.ones((2, N), complex)), TypeError, "must be real"),
        (lambda: streaming.update(STATE, "rows"), TypeError, "`rows` must be an array, got str"),
        (lambda: streaming.finalize(STATE), ValueError, "at least one row, got an empty stream"),
        (
            lambda: streaming.merge(STATE, streaming.init(N, K, key=1)),
            ValueError,
            r"`right` must be made with .* \(40, 4, 9, 0, float64\), got \(40, 4, 9, 1, float64\)",
        ),
        (lambda: jaxsvd.svd_update(3, np.ones((1, 5))), TypeError, "must be an SVDResult, got int"),
        (lambda: jaxsvd.svd_update(RESULT, np.ones((1, 4))), ValueError, r"\(b, 5\), got \(1, 4\)"),
        (lambda: jaxsvd.svd_update(RESULT, np.ones((0, 5))), ValueError, "at least one row"),
        (lambda: jaxsvd.svd_update(RESULT, np.ones((1, 5)), 4), ValueError, "1 <= k <= 3, got 4"),
        (
            lambda: jaxsvd.svd_update(RESULT._replace(S=jnp.ones(3)), np.ones((1, 5))),
            ValueError,
            r"must have shapes \(m, r\), \(r,\), \(r, n\), got",
        ),
    ],
)
def test_bad_input(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def test_a_bad_batch_leaves_the_state_as_it_was():
    A = with_values(DECAY, M, N)
    state = streaming.init(N, K)
    for batch in batches(A):
        with pytest.raises(ValueError, match="rows"):
            streaming.update(state, batch[:, 1:])
        state = streaming.update(state, batch)
    assert_same_bits(streaming.finalize(state), streaming.finalize(sketch(A)))
