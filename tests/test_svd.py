"""Values: svd, svdvals, core_svd, low_rank, spectral_map, spectral_sum, core_map against NumPy.

The oracles are NumPy and SciPy in double precision; bounds are multiples of eps, as in jax's own
tests of linear algebra.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import jaxsvd
from jaxsvd.algorithms.router import Request, route
from jaxsvd.primitives import svd as svd_module
from tests.helpers import (
    COMPLEX64,
    COMPLEX128,
    DTYPES,
    FLOAT32,
    FLOAT64,
    adjoint,
    assert_same_bits,
    assert_within,
    double,
    eps,
    gaussian,
    hermitian,
    orthonormal,
    well_separated,
    with_values,
)

ONE_OF_EACH = [FLOAT32, COMPLEX128]
SHAPES = [(4, 4), (6, 4), (2, 3, 4, 6), (1, 1), (1, 5), (5, 1)]
EMPTY_SHAPES = [(0, 3), (3, 0), (0, 0), (2, 0, 3), (0, 4, 3)]


def leading_entries(columns: np.ndarray, tolerance: float) -> np.ndarray:
    """The first entry of each column among those within a tolerance of the largest."""
    magnitude = np.abs(columns)
    leading = np.argmax(magnitude >= (1 - tolerance) * magnitude.max(-2, keepdims=True), axis=-2)
    return np.take_along_axis(columns, leading[..., None, :], axis=-2)[..., 0, :]


def check_factors(a, result, *, full_matrices: bool = False, multiple: float = 10) -> None:
    """Shapes, residual, orthogonality, order, values and phases of an SVD, in multiples of eps."""
    a = double(a)
    (*batch, m, n), k = a.shape, min(a.shape[-2:])
    unit = multiple * eps(result.U.dtype)
    U, S, Vh = (double(x) for x in result)
    assert U.shape == (*batch, m, m if full_matrices else k)
    assert S.shape == (*batch, k)
    assert Vh.shape == (*batch, n if full_matrices else k, n)
    assert not np.iscomplexobj(S)

    exact = np.linalg.svd(a, compute_uv=False)
    largest = np.max(exact, initial=0)
    np.testing.assert_allclose(S, exact, rtol=0, atol=unit * largest)
    assert np.all(S >= 0)
    assert np.all(np.diff(S) <= 0)
    reconstructed = (U[..., :k] * S[..., None, :]) @ Vh[..., :k, :]
    np.testing.assert_allclose(reconstructed, a, rtol=0, atol=unit * largest)
    for gram in (adjoint(U) @ U, Vh @ adjoint(Vh)):
        np.testing.assert_allclose(gram, np.zeros_like(gram) + np.eye(gram.shape[-1]), atol=unit)
    fixed = [U]
    if full_matrices and n > m:  # extra columns of V have no partner in U
        fixed.append(adjoint(Vh)[..., k:])
    for columns in fixed:
        entries = leading_entries(columns, eps(result.U.dtype) ** 0.5)
        np.testing.assert_allclose(entries, np.abs(entries), rtol=0, atol=unit)


# -------------------------------------------------------------------------------------- svd


@pytest.mark.parametrize("full_matrices", [True, False], ids=["full", "thin"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_factors(shape, dtype, full_matrices):
    a = gaussian(shape, dtype)
    result = jaxsvd.svd(a, full_matrices)
    assert [x.dtype for x in result] == [dtype, np.finfo(dtype).dtype, dtype]
    check_factors(a, result, full_matrices=full_matrices)


@pytest.mark.parametrize("condition", [1e1, 1e4, 1e12, np.inf])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("shape", [(1400, 12), (12, 1400), (640, 80)], ids=str)
def test_narrow_matrices_by_products_are_as_exact_as_by_lapack(shape, dtype, condition):
    assert route(shape, Request(dtype=np.dtype(dtype)), "cpu").name == "tall"
    a = with_values(1 / condition ** np.linspace(0, 1, min(shape)), *shape, dtype)
    result = jaxsvd.svd(a, full_matrices=False)
    check_factors(a, result, multiple=20)
    assert_within(jaxsvd.svdvals(a), np.linalg.svd(double(a), compute_uv=False), 10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_those_of_jnp(dtype):
    a = jnp.asarray(gaussian((2, 3, 4, 6), dtype))
    # In double precision: ours and jnp's have roundings of their own, of transposes of each other.
    expected = np.linalg.svd(np.asarray(a, np.result_type(dtype, np.float64)), compute_uv=False)
    assert_within(jaxsvd.svd(a).S, expected, 4)
    assert_within(jaxsvd.svdvals(a), expected, 4)
    assert_within(jaxsvd.svd(a, compute_uv=False), expected, 4)
    assert_within(jnp.linalg.svd(a, full_matrices=False).S, expected, 4)


@pytest.mark.x32
def test_call_is_that_of_jnp():
    ours = inspect.signature(jaxsvd.svd).parameters
    theirs = inspect.signature(jnp.linalg.svd).parameters
    for (name, parameter), own in zip(theirs.items(), ours.values(), strict=False):
        assert own.name == name
        assert own.default == parameter.default
        assert own.kind == parameter.kind


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "values", [(3.0, -2.0, 1.0, -0.5), (2.0, -2.0, 1.0, -1.0), (2.0, 2.0, -2.0, 0.0)], ids=str
)
def test_hermitian(values, dtype):
    a = hermitian(values, dtype)
    result = jaxsvd.svd(a, hermitian=True)
    check_factors(a, result, full_matrices=True)
    values_alone = jaxsvd.svd(a, compute_uv=False, hermitian=True)
    np.testing.assert_allclose(values_alone, result.S, atol=10 * eps(dtype) * 3)


@pytest.mark.parametrize("dtype", ONE_OF_EACH)
def test_hermitian_takes_the_hermitian_part(dtype):
    a = gaussian((4, 4), dtype)
    check_factors((a + adjoint(a)) / 2, jaxsvd.svd(a, hermitian=True))


@pytest.mark.x32
@pytest.mark.parametrize("subset", [(0, 1), (1, 3), [3, 4], (0, 4)], ids=str)
def test_subset_by_index(subset):
    a = gaussian((6, 4), np.float32)
    U, S, Vh = jaxsvd.svd(a, full_matrices=False)
    chosen = slice(*subset)
    part = jaxsvd.svd(a, full_matrices=False, subset_by_index=subset)
    assert_within(part, (U[:, chosen], S[chosen], Vh[chosen]), 4)
    values = jaxsvd.svd(a, compute_uv=False, subset_by_index=subset)
    assert_within(values, S[chosen], 4)


@pytest.mark.x32
@pytest.mark.parametrize("method", ["auto", "lapack"])
def test_methods(method):
    a = gaussian((6, 4), np.float32)
    check_factors(a, jaxsvd.svd(a, full_matrices=False, method=method))


@pytest.mark.parametrize(
    "name", [pytest.param("float16", marks=pytest.mark.x32), "bfloat16", "float16 batch"]
)
def test_half_precision(name):
    shape = (2, 6, 4) if "batch" in name else (6, 4)
    a = jnp.asarray(gaussian(shape, np.float32)).astype(name.split()[0])
    result = jaxsvd.svd(a, full_matrices=False)
    assert {x.dtype for x in result} == {a.dtype}
    # Residuals hold the rounding of three factors, values that of one.
    check_factors(a.astype(jnp.float32), result, multiple=4)
    exact = np.linalg.svd(np.asarray(a, np.float64), compute_uv=False)
    np.testing.assert_allclose(np.asarray(result.S, np.float64), exact, rtol=eps(a.dtype))
    assert jaxsvd.svdvals(a).dtype == a.dtype


@pytest.mark.x32
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_single(dtype):
    a = jnp.asarray(gaussian((6, 4), np.float32)).astype(dtype)
    result = jaxsvd.svd(a, full_matrices=False, result_dtype=jnp.float32)
    assert {x.dtype for x in result} == {jnp.dtype("float32")}
    check_factors(a.astype(jnp.float32), result)


@pytest.mark.parametrize(
    ("dtype", "result_dtype"), [("float32", "float64"), ("complex64", "complex128")]
)
def test_result_dtype(dtype, result_dtype):
    a = gaussian((6, 4), np.dtype(dtype).type)
    U, S, Vh = jaxsvd.svd(a, full_matrices=False, result_dtype=result_dtype)
    assert U.dtype == Vh.dtype == result_dtype
    assert S.dtype == "float64"
    assert_within(U.astype(dtype), jaxsvd.svd(a, False).U, 4)


@pytest.mark.x32
@pytest.mark.parametrize("dtype", [np.int8, np.uint32, np.bool_])
def test_integers_are_promoted(dtype):
    a = np.array([[3, 0, 1], [1, 2, 0], [0, 1, 1], [1, 1, 4]]).astype(dtype)
    result = jaxsvd.svd(a)
    assert result.U.dtype == jnp.linalg.svd(jnp.asarray(a)).U.dtype
    check_factors(a, result, full_matrices=True)
    assert jaxsvd.svdvals(a).dtype == result.S.dtype


@pytest.mark.parametrize("full_matrices", [True, False], ids=["full", "thin"])
@pytest.mark.parametrize("shape", EMPTY_SHAPES, ids=str)
def test_empty(shape, full_matrices):
    a = np.zeros(shape)
    result = jaxsvd.svd(a, full_matrices)
    expected = np.linalg.svd(a, full_matrices)
    for x, y in zip(result, expected, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, np.broadcast_to(y, x.shape))
        assert x.shape == y.shape
    gradient = jax.grad(lambda a: jnp.sum(jaxsvd.svd(a, full_matrices).U))(jnp.asarray(a))
    assert gradient.shape == shape


@pytest.mark.parametrize("shape", EMPTY_SHAPES, ids=str)
def test_empty_elsewhere(shape):
    a, k = jnp.zeros(shape), min(shape[-2:])
    *batch, m, n = shape
    assert jaxsvd.svdvals(a).shape == (*batch, k)
    assert [x.shape for x in jaxsvd.core_svd(a)] == [(*batch, m, k), (*batch, k, k), (*batch, k, n)]
    assert jaxsvd.spectral_map(jnp.tanh, a).shape == shape
    sums = jaxsvd.spectral_sum(jnp.cos, a)
    np.testing.assert_array_equal(sums, np.full(batch, k))
    square = jnp.zeros((*batch, n, n))[..., :k, :k]
    assert jaxsvd.core_map(jnp.tanh, square).shape == (*batch, k, k)


# ------------------------------------------------------------------- signs, batches, programs


@pytest.mark.x32
def test_first_of_equal_entries_is_positive():
    # Both columns of U hold entries +-1/sqrt(2), equal up to rounding.
    a = np.array([[1, 2], [1, -2]], np.float32) @ np.array([[0.8, 0.6], [-0.6, 0.8]], np.float32)
    for flipped in (a, -a, a * np.array([[1], [-1]], np.float32)):
        U = np.asarray(jaxsvd.svd(flipped).U)
        np.testing.assert_allclose(np.abs(U), 0.5**0.5, rtol=1e-6)
        assert np.all(U[0] > 0)


@pytest.mark.parametrize("dtype", ONE_OF_EACH)
def test_signs_do_not_depend_on_those_of_the_matrix(dtype):
    a = with_values([3, 2, 1], 5, 3, dtype)
    U, S, Vh = jaxsvd.svd(a, full_matrices=False)
    # A change of all right vectors by a phase is a change of Vh alone.
    phase = np.exp(1j).astype(dtype) if np.iscomplexobj(a) else np.asarray(-1, dtype)
    turned = jaxsvd.svd(a * phase, full_matrices=False)
    assert_within(turned, (U, S, Vh * jnp.asarray(phase)), 20)


@pytest.mark.x32
def test_fix_signs_is_a_choice_of_phase_only():
    a = gaussian((6, 4), np.float32)
    fixed, raw = jaxsvd.svd(a, False), jaxsvd.svd(a, False, fix_signs=False)
    assert_same_bits(np.abs(fixed.U), np.abs(raw.U))
    assert_same_bits(fixed.S, raw.S)
    ratio = np.asarray(fixed.U * raw.U).sum(0)
    assert_same_bits(fixed.Vh, raw.Vh * np.sign(ratio)[:, None])


@pytest.mark.x32
def test_deterministic():
    a = gaussian((2, 3, 4, 6), np.float32)
    first = jaxsvd.svd(a)
    assert_same_bits(jaxsvd.svd(a.copy()), first)


@pytest.mark.parametrize("dtype", [COMPLEX64, FLOAT64])
def test_vmap_gives_the_same_bits_as_leading_axes(dtype):
    a = jnp.asarray(gaussian((2, 3, 4, 6), dtype))
    together = jaxsvd.svd(a)
    assert_same_bits(jax.vmap(jaxsvd.svd)(a), together)
    assert_same_bits(jax.vmap(jax.vmap(jaxsvd.svd))(a), together)
    inner = jax.vmap(jaxsvd.svd, in_axes=2)
    assert_same_bits(jax.vmap(inner)(jnp.moveaxis(a, 1, 3)), together)
    assert_same_bits(jax.jit(jax.vmap(jaxsvd.svd))(a), together)


@pytest.mark.x32
@pytest.mark.parametrize(
    "function",
    [
        jaxsvd.svdvals,
        lambda a: jaxsvd.svd(a @ a.mT, hermitian=True),
        lambda a: jaxsvd.core_svd(a, 2),
        lambda a: jaxsvd.low_rank(a, 2),
        lambda a: jaxsvd.spectral_map(jnp.tanh, a),
        lambda a: jaxsvd.spectral_sum(jnp.tanh, a),
        lambda a: jaxsvd.core_map(jnp.tanh, a @ a.mT),
    ],
    ids=[
        "svdvals",
        "hermitian",
        "core_svd",
        "low_rank",
        "spectral_map",
        "spectral_sum",
        "core_map",
    ],
)
def test_vmap_gives_the_same_bits_elsewhere(function):
    a = jnp.asarray(gaussian((2, 3, 4, 6), np.float32))
    together = jax.jit(function)(a)
    assert_same_bits(jax.jit(jax.vmap(function))(a), together)
    assert_same_bits(jax.jit(jax.vmap(jax.vmap(function)))(a), together)


@pytest.mark.x32
@pytest.mark.parametrize(
    "function",
    [jaxsvd.svd, jaxsvd.svdvals, jaxsvd.core_svd, lambda a: jaxsvd.low_rank(a, 2)],
    ids=["svd", "svdvals", "core_svd", "low_rank"],
)
def test_eager_call_is_one_compiled_program(function):
    program = jax.make_jaxpr(function)(jnp.zeros((2, 4, 3)))
    assert [equation.primitive.name for equation in program.eqns] == ["jit"]


@pytest.mark.x32
def test_second_eager_call_compiles_nothing():
    jaxsvd.svd(gaussian((6, 4), np.float32))
    compiled = svd_module._svd._cache_size()
    jaxsvd.svd(gaussian((6, 4), np.float32, seed=1))
    assert svd_module._svd._cache_size() == compiled


@pytest.mark.x32
def test_jit_traces_once():
    traces = []

    @jax.jit
    def function(a, t):
        traces.append(None)
        U, S, Vh = jaxsvd.svd(a, full_matrices=False)
        mapped = jaxsvd.spectral_map(lambda s: jnp.tanh(t * s), a)
        return U @ (S[:, None] * Vh) + mapped + jaxsvd.low_rank(a, 2)

    results = [
        function(gaussian((6, 4), np.float32, seed), jnp.float32(1 + seed)) for seed in range(3)
    ]
    assert len(traces) == 1
    assert not np.array_equal(results[0], results[1])


# ---------------------------------------------------------------------------- NaN, Inf, scales


def first_four_rows(function):
    return lambda a: function(a[..., :4, :])


PRIMITIVES = {
    "svd": jaxsvd.svd,
    "svd thin": lambda a: jaxsvd.svd(a, full_matrices=False),
    "svd hermitian": first_four_rows(lambda a: jaxsvd.svd(a, hermitian=True)),
    "svd values": lambda a: jaxsvd.svd(a, compute_uv=False),
    "svdvals": jaxsvd.svdvals,
    "core_svd": jaxsvd.core_svd,
    "core_svd k=2": lambda a: jaxsvd.core_svd(a, 2),
    "low_rank": lambda a: jaxsvd.low_rank(a, 2),
    "low_rank of full rank": lambda a: jaxsvd.low_rank(a, 4),
    "spectral_map": lambda a: jaxsvd.spectral_map(jnp.tanh, a),
    "spectral_map of a constant": lambda a: jaxsvd.spectral_map(jnp.ones_like, a),
    "spectral_sum": lambda a: jaxsvd.spectral_sum(jnp.tanh, a),
    "spectral_sum of a constant": lambda a: jaxsvd.spectral_sum(jnp.ones_like, a),
    "core_map": first_four_rows(lambda a: jaxsvd.core_map(jnp.tanh, a)),
    "core_map of a constant": first_four_rows(lambda a: jaxsvd.core_map(jnp.ones_like, a)),
}


@pytest.mark.x32
@pytest.mark.parametrize("name", PRIMITIVES)
def test_nan_and_inf_come_out_as_nan(name):
    function = jax.jit(PRIMITIVES[name])
    for bad in (np.nan, np.inf, -np.inf):
        a = gaussian((2, 5, 4), np.float32)
        a[0, 1, 2] = bad
        for x in jax.tree.leaves(function(a)):
            assert np.all(np.isnan(x[0])), bad
            assert np.all(np.isfinite(x[1])), bad  # its neighbour in the batch


@pytest.mark.x32
@pytest.mark.parametrize("method", ["lapack", "jacobi", "gram", "polar"])
def test_a_matrix_of_nothing_but_infinities(method):
    @jax.jit
    def loss_and_gradient(a):
        def loss(a):
            return sum(jnp.sum(x) for x in jaxsvd.svd(a, full_matrices=False, method=method))

        return jax.value_and_grad(loss)(a)

    for bad in (np.inf, -np.inf, np.nan):
        for x in loss_and_gradient(np.full((40, 30), bad, np.float32)):
            assert np.all(np.isnan(x))


@pytest.mark.x32
@pytest.mark.parametrize("bad", [complex(0, np.inf), complex(np.nan, 0)], ids=str)
def test_complex_nan_and_inf(bad):
    a = gaussian((5, 4), np.complex64)
    a[1, 2] = bad
    for x in jaxsvd.svd(a):
        assert np.all(np.isnan(x))


SCALES = [
    *[pytest.param(np.float64, scale, id=f"float64 {scale}") for scale in (1e160, 1e-160)],
    *[pytest.param(np.complex128, scale, id=f"complex128 {scale}") for scale in (1e300, 1e-300)],
    *[
        pytest.param(np.float32, scale, id=f"float32 {scale}", marks=pytest.mark.x32)
        for scale in (1e20, 1e-20, 1e38)
    ],
]


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
def test_factors_at_extreme_scales(dtype, scale):
    a = with_values([1, 0.7, 0.5, 0.2], 6, 4, dtype)
    scaled = (a * np.asarray(scale, dtype)).astype(dtype)
    U, S, Vh = jaxsvd.svd(scaled, full_matrices=False)
    check_factors(double(scaled) / scale, jaxsvd.SVDResult(U, double(S) / scale, Vh))
    assert_within(jaxsvd.svdvals(scaled), S, 4)


@pytest.mark.parametrize(("dtype", "scale"), SCALES)
def test_functions_of_the_spectrum_at_extreme_scales(dtype, scale):
    a = with_values([1, 0.7, 0.5, 0.2], 6, 4, dtype)
    scale = np.asarray(scale, np.finfo(dtype).dtype)

    @jax.jit
    def functions(a):
        return (
            jaxsvd.low_rank(a, 2),
            jaxsvd.core_svd(a, 2).C,
            jaxsvd.spectral_map(lambda s: s / 2, a),
            jaxsvd.spectral_sum(lambda s: s / 8, a),
            jaxsvd.core_map(lambda s: s / 2, a[:4]),
        )

    scaled = [np.asarray(x) / scale for x in functions(a * scale)]  # XLA flushes 1/1e38 to 0
    assert_within(scaled, functions(a), 20)


# ---------------------------------------------------------------- subspaces and functions


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "k"), [((6, 4), 2), ((4, 6), 4), ((2, 3, 4, 6), 3)], ids=["tall", "wide", "batch"]
)
def test_core_svd(shape, k, dtype):
    a = gaussian(shape, dtype)
    U, C, Vh = jaxsvd.core_svd(a, k)
    exact = np.linalg.svd(double(a), compute_uv=False)[..., :k]
    unit = 10 * eps(dtype)
    eye = np.broadcast_to(np.eye(k), C.shape)
    np.testing.assert_allclose(C, eye * exact[..., None, :], rtol=0, atol=unit * exact.max())
    np.testing.assert_allclose(adjoint(double(U)) @ double(U), eye, atol=unit)
    np.testing.assert_allclose(double(Vh) @ adjoint(double(Vh)), eye, atol=unit)
    # The two sides belong together: A V = U C.
    np.testing.assert_allclose(
        double(a) @ adjoint(double(Vh)), double(U) @ double(C), atol=unit * exact.max()
    )
    assert [x.dtype for x in (U, C, Vh)] == [dtype] * 3


@pytest.mark.x32
def test_core_svd_keeps_all_pairs_by_default():
    a = gaussian((6, 4), np.float32)
    U, C, Vh = jaxsvd.core_svd(a)
    assert [x.shape for x in (U, C, Vh)] == [(6, 4), (4, 4), (4, 4)]
    assert_within(U @ C @ Vh, a, 20)


@pytest.mark.parametrize("dtype", ONE_OF_EACH)
@pytest.mark.parametrize(
    ("shape", "k"), [((6, 4), 1), ((6, 4), 3), ((6, 4), 4), ((2, 3, 4, 6), 2)], ids=str
)
def test_low_rank_error_is_that_of_eckart_and_young(shape, k, dtype):
    a = gaussian(shape, dtype)
    difference = double(a) - double(jaxsvd.low_rank(a, k))
    rest = np.linalg.svd(double(a), compute_uv=False)[..., k:]
    unit = 20 * eps(dtype) * np.linalg.norm(double(a))
    frobenius = np.linalg.norm(difference, axis=(-2, -1))
    np.testing.assert_allclose(frobenius, np.sqrt(np.sum(rest**2, -1)), rtol=0, atol=unit)
    largest = np.linalg.norm(difference, 2, axis=(-2, -1))
    np.testing.assert_allclose(largest, np.max(rest, -1, initial=0), rtol=0, atol=unit)


def map_by_numpy(f, a):
    U, s, Vh = np.linalg.svd(double(a), full_matrices=False)
    return (U * f(s)[..., None, :]) @ Vh


@pytest.mark.parametrize("dtype", ONE_OF_EACH)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)], ids=str)
def test_spectral_map_polar_and_pseudoinverse(shape, dtype):
    a = well_separated(*shape, dtype)
    assert_within(jaxsvd.spectral_map(jnp.ones_like, a), scipy.linalg.polar(double(a))[0], 20)
    inverse = jaxsvd.spectral_map(lambda s: 1 / s, a)
    assert_within(inverse, adjoint(np.linalg.pinv(double(a))), 20)


@pytest.mark.parametrize("dtype", ONE_OF_EACH)
def test_spectral_map_of_positive_definite_is_the_matrix_function(dtype):
    a = hermitian([4.0, 2.0, 2.0, 0.5], dtype)
    assert_within(jaxsvd.spectral_map(jnp.sqrt, a), scipy.linalg.sqrtm(double(a)), 20)
    logarithm = scipy.linalg.logm(np.eye(4) + double(a))
    assert_within(jaxsvd.spectral_map(jnp.log1p, a), logarithm, 20)


@pytest.mark.parametrize("dtype", ONE_OF_EACH)
@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4, 6)], ids=str)
def test_spectral_map_and_sum(shape, dtype):
    a = gaussian(shape, dtype)
    real = np.finfo(dtype).dtype.type

    def shrink(s):
        return jnp.maximum(s - real(1.5), 0)

    mapped = jaxsvd.spectral_map(shrink, a)
    assert mapped.dtype == dtype
    assert_within(mapped, map_by_numpy(lambda s: np.maximum(s - 1.5, 0), a), 40)
    total = jaxsvd.spectral_sum(jnp.square, a)
    assert total.dtype == real
    assert_within(total, np.sum(np.abs(double(a)) ** 2, (-2, -1)), 20)


@pytest.mark.parametrize("dtype", ONE_OF_EACH)
def test_spectral_map_of_powers_is_a_product(dtype):
    a = gaussian((6, 4), dtype)
    cube = double(a) @ adjoint(double(a)) @ double(a)
    assert_within(jaxsvd.spectral_map(lambda s: s**3, a), cube, 40)


@pytest.mark.x32
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_functions_keep_half_precision(dtype):
    a = jnp.asarray(gaussian((6, 4), np.float32)).astype(dtype)
    exact = np.asarray(a, np.float64)
    assert_within(jaxsvd.spectral_map(jnp.tanh, a), map_by_numpy(np.tanh, exact), 4)
    assert_within(jaxsvd.low_rank(a, 4), exact, 4)
    assert jaxsvd.low_rank(a, 2).dtype == dtype
    assert jaxsvd.spectral_sum(jnp.tanh, a).dtype == dtype
    assert {x.dtype for x in jaxsvd.core_svd(a, 2)} == {a.dtype}


@pytest.mark.parametrize("dtype", ONE_OF_EACH)
@pytest.mark.parametrize(
    ("f", "oracle"),
    [(jnp.exp, scipy.linalg.expm), (jnp.sin, scipy.linalg.sinm), (jnp.tanh, scipy.linalg.tanhm)],
    ids=["exp", "sin", "tanh"],
)
def test_core_map_is_the_matrix_function(f, oracle, dtype):
    c = hermitian([1.2, 0.5, 0.5, -0.8], dtype)
    assert_within(jaxsvd.core_map(f, c), oracle(double(c)), 40)


@pytest.mark.parametrize("dtype", ONE_OF_EACH)
def test_core_map_takes_the_hermitian_part_of_each_matrix(dtype):
    c = gaussian((2, 4, 4), dtype)
    expected = [scipy.linalg.expm(double(x + adjoint(x)) / 2) for x in c]
    assert_within(jaxsvd.core_map(jnp.exp, c), np.stack(expected), 100)


@pytest.mark.x32
def test_core_map_splits_a_low_rank_matrix_in_balance():
    a = with_values([4, 4, 1, 0.5], 6, 4, np.float32)
    U, C, Vh = jaxsvd.core_svd(a, 2)
    root = jaxsvd.core_map(jnp.sqrt, C)
    assert_within((U @ root) @ (root @ Vh), jaxsvd.low_rank(a, 2), 20)


def test_every_matrix_of_a_stack_is_its_own():
    Q = orthonormal(4, 4)
    stack = np.stack([1e-160 * Q, Q, 1e160 * Q])  # one scale for all would lose the first
    S = np.asarray(jaxsvd.svd(stack).S)
    np.testing.assert_allclose(S, np.outer([1e-160, 1, 1e160], np.ones(4)), rtol=1e-14)
