"""What holds for every matrix: invariances, inequalities, linear and symmetric derivatives.

Matrices are drawn by Hypothesis: ordinary ones, with ties, of low rank, graded, scaled by powers of
ten. Shapes are few, since each compiles; all examples of a test go through the same programs. The
bounds are multiples of eps of what is compared, the constants some ten times what was seen.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import jaxsvd
from tests.helpers import (
    adjoint,
    assert_same_bits,
    eps,
    gaussian,
    orthonormal,
    pairing,
    with_values,
)

SHAPES = [(5, 5), (7, 4), (4, 7)]
DTYPES = [np.float64, np.complex128]
K = 2

KINDS = {
    "ordinary": lambda k: 1 + np.arange(k) / 2,
    "tied": lambda k: np.where(np.arange(k) < 2, 3.0, 1.0),
    "low rank": lambda k: np.where(np.arange(k) < 3, 3.0 - np.arange(k), 0.0),
    "graded": lambda k: 10.0 ** (-3 * np.arange(k)),
    "zero": np.zeros,
}


@st.composite
def matrices(draw, shapes=tuple(SHAPES), dtypes=tuple(DTYPES), kinds=tuple(KINDS), scales=True):
    """A matrix in double precision, of any kind, somewhere between 1e-100 and 1e100."""
    (m, n), dtype = draw(st.sampled_from(shapes)), draw(st.sampled_from(dtypes))
    values = KINDS[draw(st.sampled_from(kinds))](min(m, n))
    scale = 10.0 ** draw(st.integers(-100, 100)) if scales else 1.0
    return scale * with_values(values, m, n, dtype, draw(st.integers(0, 10**6)))


seeds = st.integers(0, 10**6)
few = settings(max_examples=40)


@functools.cache
def program(name: str):
    """Compiled once for each shape and dtype, whatever the examples are."""
    functions = {
        "svd": lambda a: jaxsvd.svd(a, full_matrices=False),
        "svdvals": jaxsvd.svdvals,
        "low_rank": lambda a: jaxsvd.low_rank(a, K),
        "core": lambda a: jaxsvd.core_svd(a, K),
        "polar-like": lambda a: jaxsvd.spectral_map(jnp.tanh, a),
        "nuclear": lambda a: jaxsvd.spectral_sum(lambda s: s, a),
    }
    return jax.jit(functions[name])


def values(a) -> np.ndarray:
    return np.asarray(program("svdvals")(a))


def norm(a) -> float:
    return float(np.linalg.norm(a, 2))


def assert_near(x, y, size: float, multiple: float = 100) -> None:
    """Assert |x - y| <= multiple eps size, entry by entry."""
    np.testing.assert_allclose(x, y, rtol=0, atol=multiple * np.finfo(np.float64).eps * size)


# ------------------------------------------------------------------------------- invariance


@few
@given(matrices(), seeds)
def test_values_are_invariant_under_rotations_and_maps_are_equivariant(a, seed):
    m, n = a.shape
    Q, R = orthonormal(m, m, a.dtype, seed), orthonormal(n, n, a.dtype, seed + 1)
    turned = Q @ a @ adjoint(R)
    assert_near(values(turned), values(a), norm(a))
    unit = norm(a) or 1.0  # tanh is not homogeneous: of a matrix of norm one
    mapped = program("polar-like")
    assert_near(mapped(turned / unit), Q @ np.asarray(mapped(a / unit)) @ adjoint(R), 1.0)


@few
@given(matrices())
def test_transposition_and_conjugation(a):
    S = program("svd")(a).S
    for other in (a.T, np.conj(a), adjoint(a)):
        assert_near(values(other), S, norm(a))
    product = np.conj(np.asarray(program("low_rank")(a)))
    if len(S) > K and S[K - 1] - S[K] > 1e-3 * S[0]:
        assert_near(program("low_rank")(np.conj(a)), product, norm(a), 1e5)


@few
@given(matrices(), st.integers(-200, 200))
def test_scaling_by_a_power_of_two_changes_no_bit(a, exponent):
    U, S, Vh = program("svd")(a)
    scale = 2.0**exponent
    assert_same_bits(program("svd")(a * scale), (U, S * scale, Vh))


@few
@given(matrices(), seeds)
def test_permutations_of_rows_and_columns_and_signs(a, seed):
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(a.shape[0]), rng.permutation(a.shape[1])
    signs = rng.choice([-1.0, 1.0], a.shape[0])[:, None]
    assert_near(values(signs * a[rows][:, columns]), values(a), norm(a))


@few
@given(matrices(shapes=((4, 4),)))
def test_embedding_in_zeros_adds_zeros(a):
    wide = np.zeros((7, 4), a.dtype)
    wide[2:6] = a
    assert_near(values(wide), values(a), norm(a))
    higher = np.zeros((5, 5), a.dtype)
    higher[:4, 1:] = a
    assert_near(values(higher), np.append(values(a), 0), norm(a))


@few
@given(matrices(), seeds)
def test_factors_are_those_of_the_matrix(a, seed):
    U, S, Vh = (np.asarray(x) for x in program("svd")(a))
    assert_near((U * S) @ Vh, a, norm(a))
    assert_near(adjoint(U) @ U, np.eye(len(S)), 1)
    assert_near(Vh @ adjoint(Vh), np.eye(len(S)), 1)
    assert np.all(np.diff(S) <= 0)
    assert np.all(S >= 0)


# ----------------------------------------------------------------------------- inequalities


@few
@given(matrices(scales=False), seeds, st.sampled_from([1e-12, 1e-6, 1e-2, 1.0]))
def test_weyl_and_mirsky(a, seed, size):
    e = size * gaussian(a.shape, a.dtype, seed)
    moved = np.abs(values(a + e) - values(a))
    rounding = 100 * np.finfo(np.float64).eps * (norm(a) + norm(e))
    assert np.all(moved <= norm(e) + rounding)
    assert np.linalg.norm(moved) <= np.linalg.norm(e) + rounding
    total = values(a + e).cumsum()  # Ky Fan
    assert np.all(total <= (values(a) + values(e)).cumsum() + 10 * rounding)


@few
@given(matrices(scales=False), seeds)
def test_no_matrix_of_rank_k_is_nearer_than_low_rank(a, seed):
    best = a - np.asarray(program("low_rank")(a))
    rest = np.append(values(a), 0)[K:]
    assert_near(norm(best), rest[0], norm(a))
    assert_near(np.linalg.norm(best), np.linalg.norm(rest), norm(a))
    m, n = a.shape
    other = gaussian((m, K), a.dtype, seed) @ gaussian((K, n), a.dtype, seed + 1)
    near = a - best + 1e-3 * other @ adjoint(other) @ other  # of rank 2 k at most: cut it again
    U, s, Vh = np.linalg.svd(near, full_matrices=False)
    near = (U[:, :K] * s[:K]) @ Vh[:K]
    assert np.linalg.norm(a - near) >= np.linalg.norm(best) * (1 - 1e-12) - 1e-13 * norm(a)


# ------------------------------------------------------------------------------ derivatives

LOSSES = {
    "subspace": lambda a: jnp.sum(jnp.abs(jaxsvd.core_svd(a, K).U[0]) ** 2),
    "map": lambda a: jnp.sum(jnp.abs(jaxsvd.spectral_map(jnp.tanh, a)[0]) ** 2),
    "sum": lambda a: jaxsvd.spectral_sum(jnp.log1p, a),
    "raw": lambda a: jnp.sum(jnp.abs(jaxsvd.svd(a, full_matrices=False).Vh[:K, 0]) ** 2),
}
# Where each has a derivative of second order.
SMOOTH = {
    "subspace": ("ordinary", "tied"),
    "map": ("ordinary", "tied", "low rank"),
    "sum": ("ordinary", "tied"),
    "raw": ("ordinary",),
}


@functools.cache
def derivatives(loss: str):
    """(a, e, f) -> the directional derivative, the gradient, and two Hessian-vector products."""
    f = LOSSES[loss]

    def all_of(a, x, y):
        slope = lambda e: jax.jvp(f, (a,), (e,))[1]  # noqa: E731
        hessian = lambda e: jax.jvp(jax.grad(f), (a,), (e,))[1]  # noqa: E731
        slopes = jnp.stack([slope(x), slope(y), slope(2 * x - 3 * y)])
        return slopes, jax.grad(f)(a), hessian(x), hessian(y)

    return jax.jit(all_of)


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=15)
@given(st.data())
def test_derivatives_are_linear_and_hessians_symmetric(loss, data):
    shapes, dtypes = ((5, 5), (7, 4)), (np.float64,)
    a = data.draw(matrices(shapes, dtypes, SMOOTH[loss], scales=False))
    x, y = (gaussian(a.shape, a.dtype, data.draw(seeds)) for _ in range(2))
    slopes, gradient, Hx, Hy = derivatives(loss)(a, x, y)
    size = float(jnp.linalg.norm(gradient)) + 1e-3
    assert_near(2 * slopes[0] - 3 * slopes[1], slopes[2], size, 1e4)
    assert_near(pairing(gradient, x), slopes[0], size, 1e4)
    curvature = float(jnp.linalg.norm(Hx) + jnp.linalg.norm(Hy)) + 1e-3
    assert_near(pairing(Hx, y), pairing(Hy, x), curvature, 1e5)


# --------------------------------------------------------------------- one result, many ways


@settings(max_examples=10)
@given(matrices(shapes=((7, 4),), dtypes=(np.float64,)))
def test_compiled_is_eager_and_vmap_is_a_loop(a):
    b = a[::-1].copy()
    stack = jnp.stack([a, b])
    for call in (lambda a: jaxsvd.svd(a, full_matrices=False), lambda a: jaxsvd.core_svd(a, K)):
        eager = call(jnp.asarray(a))
        for x, y in zip(jax.jit(call)(a), eager, strict=True):
            assert_near(x, y, float(jnp.max(jnp.abs(y))), 10)
        mapped, native = jax.vmap(call)(stack), call(stack)
        assert_same_bits(mapped, native)
        alone = [call(x) for x in stack]
        for i in range(2):
            for x, y in zip(mapped, alone[i], strict=True):
                assert_near(x[i], y, float(jnp.max(jnp.abs(y))), 10)


@pytest.mark.x32
def test_sharded_is_not_sharded():
    devices = np.array(jax.devices()[:4])
    mesh = jax.sharding.Mesh(devices, ("rows",))
    a = jnp.asarray(gaussian((1024, 8), np.float32))
    spread = jax.device_put(a, NamedSharding(mesh, PartitionSpec("rows")))
    call = jax.jit(lambda a: jaxsvd.truncated_svd(a, 3))
    S, product = [], []
    for x in (a, spread):
        U, s, Vh = (np.asarray(y) for y in call(x))
        S.append(s)
        product.append((U * s) @ Vh)
    np.testing.assert_allclose(S[1], S[0], rtol=20 * eps(np.float32))
    np.testing.assert_allclose(product[1], product[0], atol=100 * eps(np.float32) * S[0][0])


@pytest.mark.x32
@settings(max_examples=5)
@given(seeds)
def test_the_same_key_and_input_give_the_same_bits(seed):
    a = jnp.asarray(gaussian((60, 40), np.float32, seed))
    key = jax.random.key(seed)
    for call in (
        lambda: jaxsvd.randomized_svd(key, a, 3),
        lambda: jaxsvd.truncated_svd(a, 3, method="subspace", max_iterations=2),
        lambda: jaxsvd.svd(a),
    ):
        assert_same_bits(call(), call())
    other = jaxsvd.randomized_svd(jax.random.key(seed + 1), a, 3)
    assert np.any(np.asarray(other.S) != np.asarray(jaxsvd.randomized_svd(key, a, 3).S))
