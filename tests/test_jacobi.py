"""The algorithms behind `svd` beside LAPACK: Jacobi, Gram and Jacobi, polar, CholeskyQR first.

Those of a GPU run here on CPU, its kernel by the interpreter of Pallas.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsvd
from benchmarks.lapack import KINDS, specimen
from jaxsvd.algorithms import krylov, registers
from jaxsvd.algorithms.gram import gram
from jaxsvd.algorithms.jacobi import jacobi, jacobi_values
from jaxsvd.algorithms.phase import fix_phases
from jaxsvd.algorithms.polar import polar
from jaxsvd.algorithms.router import DENSE, PLATFORMS, Request, route
from jaxsvd.algorithms.tall import tall
from tests.helpers import DTYPES, adjoint, double, eps, gaussian

# LAPACK's tests of its own SVD accept 50.
RATIO = 30
METHODS = ("jacobi", "gram", "polar")


def stack(m, n, dtype):
    """Ordinary, zero, rank one, equal singular values, tiny, huge, graded, clustered."""
    rng = np.random.default_rng(m + n)
    a = gaussian((8, m, n), np.complex128 if np.issubdtype(dtype, np.complexfloating) else float)
    a[1] = 0
    a[2] = a[2][:, :1] * a[2][:1]
    a[3] = 3 * np.eye(m, n)
    a[4] *= 1e-30
    a[5] *= 1e30
    a[6] *= 10.0 ** -np.arange(n)
    a[7] = np.eye(m, n) + 1e-5 * rng.standard_normal((m, n))
    return a.astype(dtype)


def ratios(a, result):
    """Residual, orthogonality of U and Vh, and error of S, as LAPACK's tests scale them."""
    U, S, Vh = (double(x) for x in result)
    a, unit = double(a), eps(result.S.dtype)
    m, n, k = *a.shape[-2:], S.shape[-1]
    exact = np.linalg.svd(a, compute_uv=False)
    largest = np.maximum(exact[:, 0], np.finfo(np.float64).tiny)
    back = U[..., :k] * S[:, None] @ Vh[:, :k]
    residual = np.linalg.norm(a - back, axis=(1, 2)) / largest / max(m, n)
    left = np.abs(adjoint(U) @ U - np.eye(U.shape[-1])).max() / m
    right = np.abs(Vh @ adjoint(Vh) - np.eye(Vh.shape[-2])).max() / n
    values = np.abs(S - exact).max(axis=1) / largest
    assert np.all(np.diff(S, axis=-1) <= 0)
    return np.array([residual.max(), left, right, values.max()]) / unit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (5, 2), (2, 5), (8, 8), (13, 9)])
@pytest.mark.parametrize("method", METHODS)
def test_full_and_thin(method, shape, dtype):
    a = stack(*shape, dtype)
    for full in {False, shape[0] != shape[1]}:
        result = jaxsvd.svd(jnp.asarray(a), full, method=method)
        assert ratios(a, result).max() < RATIO


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(300, 8), (8, 300)])
def test_tall(shape, dtype):
    a = stack(*shape, dtype)
    assert ratios(a, jax.jit(lambda a: tall(a, lambda R: jacobi(R, False)))(a)).max() < RATIO


@pytest.mark.x32
def test_chunks_and_padding_change_nothing():
    a = jnp.asarray(gaussian((700, 3, 3), np.float32))
    whole = jaxsvd.svd(a)
    assert ratios(np.asarray(a), whole).max() < RATIO
    for x, y in zip(whole, jaxsvd.svd(a[:260]), strict=True):
        np.testing.assert_allclose(x[:260], y, atol=1e-4)  # a chunk stops when its slowest has
    np.testing.assert_allclose(jaxsvd.svdvals(a), whole.S, atol=1e-5)


@pytest.mark.parametrize("shape", [(600, 3, 3), (150, 8, 6)])
def test_vmap_leading_axes_and_nested_vmap_give_the_same_bits(shape):
    a = jnp.asarray(gaussian(shape))
    assert route(shape, Request(), "cpu").name == "jacobi"
    svd = functools.partial(jaxsvd.svd, full_matrices=False)
    direct = svd(a)
    pairs = a.reshape(-1, 2, *shape[1:])
    others = [jax.vmap(svd)(a), jax.jit(jax.vmap(svd))(a), jax.vmap(jax.vmap(svd))(pairs)]
    for other in others:
        for x, y in zip(direct, other, strict=True):
            np.testing.assert_array_equal(x, y.reshape(x.shape))


def test_gradient_is_that_of_the_lapack_route():
    a = jnp.asarray(gaussian((600, 4, 3)))
    w = jnp.asarray(gaussian((4, 3), seed=1))

    def loss(a, method):
        U, S, Vh = jaxsvd.svd(a, full_matrices=False, method=method)
        return jnp.sum(w * (U * jnp.tanh(S)[..., None, :])) + jnp.sum(w[:3] * Vh)

    with jax.numpy_rank_promotion("allow"):
        by = {m: jax.grad(loss)(a, m) for m in ("auto", "lapack")}
    np.testing.assert_allclose(by["auto"], by["lapack"], rtol=1e-7, atol=1e-9)


def test_small_singular_values_to_full_relative_accuracy():
    """Columns graded over 12 orders: LAPACK keeps eps s_1, Jacobi eps s_i."""
    mpmath = pytest.importorskip("mpmath")
    a = gaussian((4, 4)) * 10.0 ** -np.arange(0, 16, 4)
    with mpmath.workdps(60):
        exact = np.array([float(s) for s in mpmath.svd_r(mpmath.matrix(a), compute_uv=False)])
    for S in (jacobi(jnp.asarray(a), False).S, jacobi_values(jnp.asarray(a))):
        np.testing.assert_allclose(S, np.sort(exact)[::-1], rtol=50 * eps(np.float64))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("algorithm", [jacobi, gram])
def test_one_bad_matrix_spoils_itself_only(algorithm, value):
    a = gaussian((20, 3, 3))
    a[7, 1, 2] = value
    result = algorithm(jnp.asarray(a), False)
    for x in result:
        bad = np.isnan(np.asarray(x)).reshape(20, -1)
        assert bad[7].all()
        assert not np.delete(bad, 7, axis=0).any()


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_request_has_a_row(platform):
    for shape in [(3, 3), (10**5, 3, 3), (64, 48, 48), (10**4, 20), (0, 3), (500, 0, 3)]:
        for full_matrices in (False, True):
            assert route(shape, Request(full_matrices), platform) in DENSE


@pytest.mark.x32
@pytest.mark.parametrize("shape", [(4, 4), (3, 2), (2, 3), (1, 1)])
def test_the_kernel_of_a_gpu(shape):
    a = np.tile(stack(*shape, np.float32), (9, 1, 1))  # more than one block, the last not full
    with jax.enable_x64(False):  # the interpreter mixes integers of two kinds otherwise
        result = jax.jit(lambda a: registers.by_kernel(a, True, interpret=True))(a)
        U, S, Vh = result = jaxsvd.SVDResult(*result)
    assert ratios(a, result).max() < RATIO
    S = np.asarray(S)
    sure = np.all(np.diff(S, append=0) < -1e-3 * S[:, :1], axis=1)  # no ties, no zeros
    for x, y in zip(result, jacobi(jnp.asarray(a), False, signs=True), strict=True):
        np.testing.assert_allclose(x[sure], y[sure], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(U, fix_phases(result).U)
    assert Vh.shape[-1] == shape[1]


def test_a_bad_matrix_in_the_kernel_spoils_itself_only():
    a = gaussian((20, 3, 3)).astype(np.float32)
    a[7, 1, 2], a[9, 0, 0], a[11] = np.nan, np.inf, 0
    with jax.enable_x64(False):
        result = jax.jit(lambda a: registers.by_kernel(a, True, interpret=True))(a)
    for x in result:
        bad = np.isnan(np.asarray(x)).reshape(20, -1)
        assert bad[[7, 9]].all()
        assert not np.delete(bad, [7, 9], axis=0).any()


def test_the_arithmetic_of_the_kernel_in_double_precision():
    a = stack(4, 3, np.float64)
    columns = [[jnp.asarray(a[:, i, j]) for i in range(4)] for j in range(3)]
    left, S, right = jax.jit(lambda c: registers._triplets(c, None))(columns)
    U, V = (np.moveaxis(np.asarray(x), -1, 0).swapaxes(1, 2) for x in (left, right))
    whole = np.delete(np.arange(8), [1, 2])  # left vectors of zeros are filled elsewhere
    result = jaxsvd.SVDResult(U[whole], jnp.stack(S, -1)[whole], V.swapaxes(1, 2)[whole])
    assert ratios(a[whole], result).max() < RATIO


def test_the_kernel_is_for_one_device_and_loops_for_a_mesh():
    a = jax.ShapeDtypeStruct((64, 3, 3), np.float32)
    svd = jax.jit(functools.partial(jaxsvd.svd, full_matrices=False))

    def lowered(a):
        return svd.trace(a).lower(lowering_platforms=("cuda",)).as_text()

    # From JAX 0.11 on the kernel needs a GPU to be written for; loops take its place without one.
    assert ("triton" in lowered(a)) == (jax.__version_info__ < (0, 11))
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.P("batch"))
    text = lowered(jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=spread))
    assert "triton" not in text
    assert "stablehlo.while" in text


@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
@pytest.mark.parametrize("rank", [0, 5, 16])
def test_the_leading_part_of_a_small_matrix_on_gpu(rank, dtype):
    sizes, p = (16, 32, 48), 32
    B = np.zeros((2, 48, 48), dtype)
    B[:, :p, :p] = (gaussian((2, p, rank)) @ gaussian((2, rank, p), seed=1)).astype(dtype)
    B[1] *= 100
    run = jax.jit(functools.partial(krylov._leading_elsewhere, sizes))
    X, S, Yh = run(jnp.asarray(sizes.index(p)), jnp.asarray(B))
    assert ratios(B, jaxsvd.SVDResult(X, S, Yh)).max() < RATIO
    np.testing.assert_allclose(X[:, p:, :p], 0, atol=RATIO * eps(S.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_polar_factors_of_matrices_that_are_hard_for_them(dtype):
    m, n = 60, 50
    G = gaussian((m, n), dtype)
    Q, R = np.linalg.qr(G)
    graded = Q * 10.0 ** -np.arange(n) @ adjoint(np.linalg.qr(R)[0])
    wild = np.exp(np.random.default_rng(0).uniform(-70, 0, (m, n))) * np.tri(m, n)
    a = np.stack([0 * G, 0 * G + 1, G[:, :1] @ G[:1], graded, wild, Q]).astype(dtype)
    assert ratios(a, jax.jit(functools.partial(polar, full_matrices=True))(a)).max() < RATIO


def test_polar_factors_of_entries_of_every_size():
    kind = next(kind for kind in KINDS if kind.name == "bidiagonal, wild exponents")
    a = np.stack([specimen(kind, 200, 200, np.float64, seed).a for seed in range(3)])
    assert ratios(a, jax.jit(functools.partial(polar, full_matrices=False))(a)).max() < RATIO
