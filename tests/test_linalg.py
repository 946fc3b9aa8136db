"""Values of jaxsvd.linalg against NumPy and SciPy, over shapes, ranks, dtypes and scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers import (
    COMPLEX128,
    FLOAT32,
    FLOAT64,
    adjoint,
    double,
    eps,
    gaussian,
    hermitian,
    orthonormal,
    with_values,
)

from jaxsvd import linalg

DTYPES = [FLOAT32, COMPLEX128]  # of either kind and precision one; each more compiles all again
SHAPES = [(5, 3), (3, 3), (3, 5)]


def projector(Q):
    return double(Q) @ adjoint(double(Q))


def near(actual, desired, dtype, multiple=100):
    scale = np.max(np.abs(desired), initial=1e-300)
    np.testing.assert_allclose(double(actual), desired, rtol=0, atol=multiple * eps(dtype) * scale)


# ------------------------------------------------------------------------------------------ solving


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_pinv_and_lstsq_of_every_rank(shape, dtype):
    b = gaussian((shape[0], 2), dtype, 7)
    for values in ([3, 2, 1], [2, 2, 2], [2, 1], [1, 1], [1], []):
        A = with_values(values, *shape, dtype) if values else np.zeros(shape, dtype)
        wanted = np.linalg.pinv(double(A), rcond=1e-5)
        got = linalg.pinv(A)
        assert got.dtype == A.dtype
        near(got, wanted, dtype)
        near(linalg.lstsq(A, b), wanted @ double(b), dtype)
        near(linalg.lstsq(A, b[:, 0]), wanted @ double(b[:, 0]), dtype)


def test_lstsq_is_the_solution_of_minimum_norm_of_scipy():
    A, b = with_values([3, 1], 6, 4, seed=2), gaussian((6, 3))
    near(linalg.lstsq(A, b), scipy.linalg.lstsq(A, b, cond=1e-10)[0], np.float64)


def test_pinv_drops_what_the_tolerance_says():
    A = with_values([3, 1, 0.1], 4, 3)
    for rtol in (0.0, 0.01, 0.2, 0.5):
        near(linalg.pinv(A, rtol), np.linalg.pinv(A, rcond=rtol), np.float64)


@pytest.mark.parametrize("scale", [1e160, 1e-160, 1e300, 1e-300])
def test_scales(scale):
    A, b = with_values([2, 2, 1], 5, 3), gaussian((5,))
    near(np.asarray(linalg.pinv(scale * A)) * scale, np.linalg.pinv(A), np.float64)
    x = linalg.lstsq(scale * A, scale * b)
    near(x, np.linalg.lstsq(A, b)[0], np.float64)
    # The gradient of a loss of order one in b, in range: A^+H of size 1/scale.
    gradient = jax.grad(lambda b: jnp.sum(linalg.lstsq(scale * A, b)))(scale * b)
    near(np.asarray(gradient) * scale, np.linalg.pinv(A).sum(0), np.float64)
    gradient = jax.grad(lambda a: jnp.sum(linalg.lstsq(a, scale * b)))(scale * A)
    wanted = jax.grad(lambda a: jnp.sum(linalg.lstsq(a, b)))(A)
    near(np.asarray(gradient) * scale, np.asarray(wanted), np.float64)
    for kind in ("zca", "pca", "cholesky"):
        C = A.T @ A
        W = np.asarray(linalg.whitening(scale * C, kind)) * scale**0.5
        near(W @ C @ W.T, np.eye(3), np.float64)
    U, P = linalg.polar(scale * A)
    near(np.asarray(U) @ (np.asarray(P) / scale), A, np.float64)
    near(linalg.tls(scale * A, scale * b), linalg.tls(A, b), np.float64)
    R, t = linalg.kabsch(scale * A, 3 * scale * A[:, [1, 2, 0]])
    near(R, np.eye(3)[[1, 2, 0]], np.float64)
    near(np.asarray(t) / scale, A[:, [1, 2, 0]].mean(0) * 2, np.float64)
    assert linalg.matrix_rank(scale * A) == 3
    near(linalg.cond(scale * A), 2.0, np.float64)
    near(linalg.cond(scale * A, "fro"), 1.5 * 6**0.5, np.float64)
    near(projector(linalg.orth(scale * A)), A @ np.linalg.pinv(A), np.float64)


def total_least_squares(A, B):
    n = A.shape[1]
    V = adjoint(np.linalg.svd(np.concatenate([A, B], axis=1))[2])
    return -V[:n, n:] @ np.linalg.inv(V[n:, n:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_tls_of_one_and_several_right_hand_sides(dtype):
    A, B = gaussian((6, 3), dtype, 1), gaussian((6, 2), dtype, 2)
    near(linalg.tls(A, B), total_least_squares(double(A), double(B)), dtype, 1000)
    near(linalg.tls(A, B[:, :1])[:, 0], np.asarray(linalg.tls(A, B[:, 0])), dtype, 0)
    x = gaussian((3, 2), dtype, 3)  # data without errors: the solution itself
    near(linalg.tls(A, A @ x), double(x), dtype, 1000)


# ---------------------------------------------------------------------------------------- alignment


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_polar_against_scipy(dtype, side):
    for shape in SHAPES:
        for values in ([3, 2, 1], [2, 2, 2]):
            A = with_values(values, *shape, dtype)
            U, P = linalg.polar(A, side)
            wanted_U, wanted_P = scipy.linalg.polar(double(A), side)
            near(U, wanted_U, dtype)
            near(P, wanted_P, dtype)
        near(linalg.orthogonalize(A), wanted_U, dtype)
    A = with_values([2, 1], 5, 3, dtype)  # of deficient rank
    U, P = linalg.polar(A, side)
    near(P, scipy.linalg.polar(double(A), side)[1], dtype)
    near(adjoint(double(U)) @ double(U), np.eye(3), dtype)
    near(double(U) @ double(P) if side == "right" else double(P) @ double(U), double(A), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_procrustes_against_scipy(dtype):
    A, B = gaussian((6, 3), dtype, 1), gaussian((6, 3), dtype, 2)
    R, scale = linalg.procrustes(A, B)
    wanted_R, wanted_scale = scipy.linalg.orthogonal_procrustes(double(A), double(B))
    near(R, wanted_R, dtype)
    near(scale, wanted_scale, dtype)


@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_kabsch_finds_proper_rotations(d, dtype):
    P, t = gaussian((7, d), np.float64, 1), gaussian((d,), np.float64, 2)
    R = orthonormal(d, d, np.float64, 3)
    R[0] *= np.linalg.det(R)
    got = linalg.kabsch(P.astype(dtype), (P @ R.T + t).astype(dtype))
    near(got.R, R, dtype)
    near(got.t, t, dtype)
    # A reflection is out of reach: the best rotation, as SciPy finds it, of determinant one.
    Q, w = P @ np.diag([-1.0] + [1.0] * (d - 1)), np.abs(gaussian((7,), np.float64, 4))
    got = linalg.kabsch(*(x.astype(dtype) for x in (P, Q, w)))
    assert abs(np.linalg.det(double(got.R)) - 1) < 10 * eps(dtype)
    if d == 3:
        p, q = (w @ x / w.sum() for x in (P, Q))
        wanted = scipy.spatial.transform.Rotation.align_vectors(Q - q, P - p, w)[0].as_matrix()
        near(got.R, wanted, dtype)
        near(got.t, q - wanted @ p, dtype)


def test_kabsch_weighs_points():
    P = gaussian((5, 3), seed=1)
    Q = np.roll(P, 1, axis=1) + 1
    Q[4] += 100  # an outlier of weight zero
    R, t = linalg.kabsch(P, Q, np.array([1.0, 2, 1, 1, 0]))
    near(R, np.eye(3)[[2, 0, 1]], np.float64)
    near(t, np.ones(3), np.float64)


# ---------------------------------------------------------------------------------------- subspaces


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_the_four_fundamental_subspaces(m, n, dtype):
    k = min(m, n)
    for values in ([3, 2, 1], [1, 1], []):
        r = len(values)
        A = with_values(values, m, n, dtype) if r else np.zeros((m, n), dtype)
        spaces = linalg.subspaces(A)
        assert [Q.shape for Q in spaces] == [(m, k), (n, n), (n, k), (m, m)]
        for Q, P, dimension in zip(spaces, projectors(A, r), (r, n - r, r, m - r), strict=True):
            near(projector(Q), P, dtype)
            assert np.all(np.asarray(Q)[:, dimension:] == 0)  # the columns that count come first


def projectors(A, r):
    U, _, Vh = np.linalg.svd(double(A))
    V = adjoint(Vh)
    return [projector(X) for X in (U[:, :r], V[:, r:], V[:, :r], U[:, r:])]


@pytest.mark.parametrize(("m", "n"), [(5, 3), (3, 5)])
def test_subspaces_of_a_known_rank(m, n):
    A = with_values([1, 1], m, n)
    wanted = projectors(A, 2)
    spaces = linalg.subspaces(A, rank=2)
    assert [Q.shape for Q in spaces] == [(m, 2), (n, n - 2), (n, 2), (m, m - 2)]
    for Q, P in zip(spaces, wanted, strict=True):
        near(projector(Q), P, np.float64)
    near(projector(linalg.orth(A)), wanted[0], np.float64)
    near(projector(linalg.null_space(A)), wanted[1], np.float64)


def test_subspaces_against_scipy():
    A = with_values([3, 1], 5, 4)
    near(projector(linalg.orth(A, rank=2)), projector(scipy.linalg.orth(A)), np.float64)
    wanted = projector(scipy.linalg.null_space(A))
    near(projector(linalg.null_space(A, rank=2)), wanted, np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_principal_angles_against_scipy(dtype):
    for p, q in ((3, 2), (2, 3)):
        A, B = gaussian((6, p), dtype, 1), gaussian((6, q), dtype, 2)
        wanted = scipy.linalg.subspace_angles(double(A), double(B))
        near(linalg.principal_angles(A, B), wanted, dtype)


def test_small_angles_are_exact():
    p = 2
    angles = np.array([1.5, 1e-3, 1e-6, 1e-12])
    Q = orthonormal(12, 12, seed=1)
    A = Q[:, :4] @ gaussian((4, 4), seed=2)
    B = (Q[:, :4] * np.cos(angles) + Q[:, 4:8] * np.sin(angles)) @ gaussian((4, 4), seed=3)
    np.testing.assert_allclose(linalg.principal_angles(A, B), angles, rtol=0, atol=2e-14)
    # More dimensions on one side, all of them orthogonal to the other: the same angles.
    more = np.concatenate([B, Q[:, 8 : 8 + p]], axis=1)
    for pair in ((A, more), (more, A)):
        np.testing.assert_allclose(linalg.principal_angles(*pair), angles, rtol=0, atol=2e-14)
    # Deficient ranks: fewer angles, then zeros.
    twice = np.concatenate([B, B[:, :p]], axis=1)
    np.testing.assert_allclose(linalg.principal_angles(A, twice), angles, rtol=0, atol=2e-14)
    few = linalg.principal_angles(np.concatenate([A[:, :2], A[:, :2]], axis=1), more)
    wanted = scipy.linalg.subspace_angles(A[:, :2], more)
    np.testing.assert_allclose(few, [*wanted, 0, 0], rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------ ranks and condition


def test_rank_and_condition():
    A = np.stack([with_values(s, 4, 3) for s in ([3, 2, 1], [1, 1], [2], [1, 1e-13, 1e-20])])
    np.testing.assert_array_equal(linalg.matrix_rank(A), [3, 2, 1, 2])
    np.testing.assert_array_equal(linalg.matrix_rank(A, 0.6), [2, 2, 1, 1])
    assert linalg.matrix_rank(np.zeros((0, 3))) == linalg.matrix_rank(np.zeros((2, 3))) == 0
    assert linalg.matrix_rank(A[0] * np.nan) == -1
    B = with_values([3, 2, 1], 3, 3)
    for p in (None, 2, -2, "fro"):
        np.testing.assert_allclose(linalg.cond(B, p), np.linalg.cond(B, p), rtol=1e-13)
    assert linalg.cond(np.diag([1.0, 0.0])) == np.inf
    assert linalg.cond(np.diag([1.0, 0.0]), "fro") == np.inf


@pytest.mark.parametrize(
    ("ratio", "known", "unknown"),
    # Gavish and Donoho (2014): 4/sqrt(3), 2.858; their tables for the others.
    [(1.0, 2.3094, 2.858), (0.5, 1.9786, 2.1711), (0.05, 1.5066, 1.5194)],
)
def test_the_optimal_threshold_is_that_of_gavish_and_donoho(ratio, known, unknown):
    from jaxsvd.linalg.rank import _marchenko_pastur_median, _threshold_for_noise

    threshold = _threshold_for_noise(ratio)
    assert threshold == pytest.approx(known, abs=1e-4)
    omega = threshold / _marchenko_pastur_median(ratio) ** 0.5
    assert omega == pytest.approx(unknown, abs=5e-4)


@pytest.mark.parametrize("shape", [(60, 100), (100, 60), (80, 80)])
def test_optimal_rank_of_a_signal_in_noise(shape):
    m, n = shape
    sigma = 0.01
    detectable = 1.5 * (m + n) ** 0.5
    signal = with_values([4 * detectable, 2 * detectable, 1.5 * detectable], m, n)
    noisy = sigma * (signal + gaussian(shape, seed=5))
    s = np.linalg.svd(noisy, compute_uv=False)
    assert linalg.optimal_rank(s, shape) == 3
    assert linalg.optimal_rank(s, shape, noise=sigma) == 3
    assert linalg.optimal_rank(s[:7], shape, noise=sigma) == 3
    both = linalg.optimal_rank(np.stack([s, s]), shape, noise=np.array([sigma, 100 * sigma]))
    np.testing.assert_array_equal(both, [3, 0])
    assert linalg.optimal_rank(s * np.nan, shape) == -1


def test_rank_for_energy():
    s = np.array([3.0, 1.0, 0.1, 0.0])
    shares = np.cumsum(s**2) / np.sum(s**2)
    for energy, rank in ((0, 0), (0.8, 1), (0.95, 2), (0.9999, 3), (1, 3), (1.0, 3)):
        assert linalg.rank_for_energy(s, energy) == rank
        assert linalg.rank_for_energy(s[::-1] * 1e-200, energy) == rank
    assert linalg.rank_for_energy(s, shares[0]) == 1
    assert linalg.rank_for_energy(np.array([3.0, 1.0]), 0.9) == 1  # 9 of 10, exactly
    assert linalg.rank_for_energy(np.array([3.0, 1.0], np.float32), 0.9) == 1
    assert linalg.rank_for_energy(np.zeros(3), 0.9) == 0
    assert linalg.rank_for_energy(s * np.nan, 0.9) == -1
    np.testing.assert_array_equal(linalg.rank_for_energy(np.stack([s, 0 * s]), 0.95), [2, 0])


# ---------------------------------------------------------------------------------------- hermitian


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["zca", "pca", "cholesky"])
def test_whitening(kind, dtype):
    for values in ([3.0, 2.0, 0.5], [2.0, 2.0, 2.0]):
        C = hermitian(values, dtype)
        W = double(linalg.whitening(C, kind))
        near(W @ double(C) @ adjoint(W), np.eye(3), dtype)
        if kind == "zca":
            near(W, np.linalg.inv(scipy.linalg.sqrtm(double(C))), dtype)
        elif kind == "pca":  # rows in order of variance
            near(W @ adjoint(W), np.diag(1 / np.array(values)), dtype)
        else:
            near(W, np.linalg.inv(np.linalg.cholesky(double(C))), dtype)
    if kind != "cholesky":  # of deficient rank: the projector on the rest
        C = double(hermitian([2.0, 1.0, 0.0], dtype))
        W = double(linalg.whitening(C.astype(dtype), kind))
        P = W @ C @ adjoint(W)
        near(P @ P, P, dtype)
        near(np.trace(P), 2.0, dtype)
    assert np.isnan(linalg.whitening(hermitian([2.0, 1.0, -1.0], dtype), kind)).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_jordan_wielandt(shape):
    A = gaussian(shape, np.complex128)
    H, w, Q = linalg.jordan_wielandt(A)
    zero = np.zeros
    m, n = shape
    near(H, np.block([[zero((m, m)), A], [adjoint(A), zero((n, n))]]), np.float64)
    near(w, np.linalg.eigvalsh(H), np.float64)
    near(double(H) @ double(Q), double(Q) * double(w), np.float64)
    near(adjoint(double(Q)) @ double(Q), np.eye(m + n), np.float64)


def test_rayleigh_quotient():
    A, v, u = gaussian((3, 3), np.complex128), gaussian((3,), seed=2), gaussian((3,), seed=3)
    near(linalg.rayleigh_quotient(A, v), v @ A @ v / (v @ v), np.float64)
    wanted = u @ A @ v / np.linalg.norm(u) / np.linalg.norm(v)
    near(linalg.rayleigh_quotient(A, 1e200 * v, 1e-200 * u), wanted, np.float64)
