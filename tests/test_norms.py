"""Norms against NumPy's singular values in double precision, and against finite differences.

The oracle of a value is the formula on np.linalg.svd; that of a derivative, differences of that
oracle; that of a convolution, the matrix of the layer written out by loops.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.libraries import derivatives_of
from jaxsvd import norms, operators
from tests.helpers import (
    COMPLEX128,
    FLOAT32,
    assert_within,
    double,
    eps,
    gaussian,
    pairing,
    with_values,
)
from tests.test_operators import loops


def singular_values(A) -> np.ndarray:
    return np.linalg.svd(double(A), compute_uv=False)


def entropy_rank(s):
    p = s / np.sum(s, axis=-1, keepdims=True)
    return np.exp(-np.sum(np.where(p > 1e-14, p * np.log(np.maximum(p, 1e-300)), 0), axis=-1))


def total(f):
    return lambda s: np.sum(f(s), axis=-1)


# Of each: the norm, and its value from the singular values of a matrix (5, 4).
NORMS = {
    "spectral": (norms.spectral, lambda s: s[..., 0]),
    "nuclear": (norms.nuclear, total(lambda s: s)),
    "schatten 3": (lambda a: norms.schatten(a, 3), lambda s: total(lambda s: s**3)(s) ** (1 / 3)),
    "schatten 1/2": (lambda a: norms.schatten(a, 0.5), lambda s: total(np.sqrt)(s) ** 2),
    "ky_fan": (lambda a: norms.ky_fan(a, 3), lambda s: np.sum(s[..., :3], axis=-1)),
    "frobenius": (norms.frobenius, lambda s: np.sqrt(total(np.square)(s))),
    "stable_rank": (norms.stable_rank, lambda s: total(np.square)(s) / s[..., 0] ** 2),
    "effective_rank": (norms.effective_rank, entropy_rank),
    "log_volume": (lambda a: norms.log_volume(a, 0.7), total(lambda s: np.log1p(s**2 / 0.7))),
    "orthogonality": (norms.orthogonality, total(lambda s: (s**2 - 1) ** 2)),
    "tail_energy": (lambda a: norms.tail_energy(a, 3), lambda s: np.sum(s[..., 3:] ** 2, axis=-1)),
}

SPECTRA = {"distinct": (3, 2, 1.5, 0.5), "tied": (3, 2, 2, 1), "deficient": (3, 2, 1, 0)}

# These have no two-sided derivative at a zero singular value.
ROUGH_AT_ZERO = ("nuclear", "schatten 1/2", "effective_rank")


def stack(dtype) -> np.ndarray:
    return np.stack([with_values(s, 5, 4, dtype, i) for i, s in enumerate(SPECTRA.values())])


# --------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", [FLOAT32, COMPLEX128])
@pytest.mark.parametrize("name", NORMS)
def test_values(name, dtype):
    norm, oracle = NORMS[name]
    A = stack(dtype)
    values = norm(jnp.asarray(A))
    s = singular_values(A)
    s = np.where(s > 10 * eps(dtype), s, 0)  # the root of a rounding error is none
    assert values.dtype == np.finfo(dtype).dtype
    assert values.shape == (3,)
    assert_within(values, oracle(s), 300)


@pytest.mark.parametrize("name", NORMS)
def test_wide_matrices_and_vmap(name):
    norm, _ = NORMS[name]
    A = jnp.asarray(stack(np.float64))
    assert_within(jax.vmap(norm)(A.mT), norm(A), 2000)


def test_half_precision_comes_back_as_it_was():
    A = jnp.asarray(stack(np.float32), jnp.bfloat16)
    assert norms.nuclear(A).dtype == jnp.bfloat16
    assert norms.spectral_bound(A).dtype == jnp.float32


@pytest.mark.x32
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_scales(scale):
    A = np.float32(scale) * with_values((2, 1), 3, 2, np.float32)
    s = singular_values(A)
    for norm, value in [
        (norms.spectral, s[0]),
        (norms.spectral_bound, s[0]),
        (norms.nuclear, s.sum()),
        (norms.frobenius, np.sqrt(np.sum(s**2))),
        (lambda a: norms.schatten(a, 3), np.sum(s**3) ** (1 / 3)),
        (norms.stable_rank, 1.25),
        (norms.effective_rank, entropy_rank(s)),
        (lambda a: norms.log_volume(a), np.sum(np.log1p(s**2))),
    ]:
        np.testing.assert_allclose(double(norm(jnp.asarray(A))), value, rtol=1e-3, atol=1e-30)


def test_limits():
    A = jnp.asarray(stack(np.float64))
    assert_within(norms.schatten(A, np.inf), singular_values(A)[:, 0], 10)
    assert_within(norms.schatten(A, 2), norms.frobenius(A), 10)
    assert_within(norms.schatten(A, 1), norms.nuclear(A), 10)
    assert_within(norms.tail_energy(A, 0), norms.frobenius(A) ** 2, 10)
    Z = jnp.zeros((4, 3))
    for norm in (norms.stable_rank, norms.effective_rank, norms.nuclear, norms.spectral_bound):
        value, gradient = jax.value_and_grad(norm)(Z)
        assert value == 0
        assert np.all(np.isfinite(gradient))


@pytest.mark.x32
def test_nan_comes_out():
    A = jnp.ones((4, 3), jnp.float32).at[1, 1].set(jnp.nan)
    for norm in (norms.spectral, norms.nuclear, norms.frobenius, norms.spectral_bound):
        assert np.isnan(norm(A))


def test_operators_and_sparse_matrices():
    A = stack(np.float64)[0]
    for norm, oracle in NORMS.values():
        given = norm(operators.Dense(jnp.asarray(A)) * 2.0)
        assert_within(given, oracle(singular_values(2 * A)), 300)


# ---------------------------------------------------------------------------------- derivatives


def oracle_slopes(oracle, A, E, h=1e-6):
    s = [singular_values(A + step * E) for step in (h, -h)]
    return (oracle(s[0]) - oracle(s[1])) / (2 * h)


@pytest.mark.parametrize("name", NORMS)
def test_gradients(name):
    dtype = np.complex128
    norm, oracle = NORMS[name]
    A = stack(dtype)
    gradients = jax.jit(jax.vmap(jax.grad(norm)))(jnp.asarray(A))
    assert np.all(np.isfinite(gradients))
    for i, kind in enumerate(SPECTRA):
        if kind == "deficient" and name in ROUGH_AT_ZERO:
            continue
        for seed in range(4):
            E = gaussian(A.shape[1:], dtype, seed)
            slope = pairing(gradients[i], E)
            np.testing.assert_allclose(slope, oracle_slopes(oracle, A[i], E), rtol=2e-7, atol=1e-8)


@pytest.mark.parametrize("name", ROUGH_AT_ZERO)
def test_gradients_at_constant_rank(name):
    """Along matrices of the same rank the derivative is the true one."""
    norm, oracle = NORMS[name]
    B, C = gaussian((5, 2), seed=1), gaussian((2, 4), seed=2)
    dB, dC = gaussian((5, 2), seed=3), gaussian((2, 4), seed=4)
    gradient = jax.grad(norm)(jnp.asarray(B @ C))

    def along(t):
        s = singular_values((B + t * dB) @ (C + t * dC))
        return oracle(np.where(s > 1e-12, s, 0))

    slope = (along(1e-6) - along(-1e-6)) / 2e-6
    np.testing.assert_allclose(pairing(gradient, dB @ C + B @ dC), slope, rtol=1e-7, atol=1e-9)


def test_first_derivative_of_the_largest_at_a_tie_is_a_subgradient():
    A = with_values((2, 2, 1), 5, 4)
    U, _, Vh = np.linalg.svd(A)
    for norm in (norms.spectral, lambda a: norms.spectral(a, method="exact")):
        gradient = double(jax.grad(norm)(jnp.asarray(A)))
        inner = U[:, :2].T @ gradient @ Vh[:2].T  # a a^T, |a| = 1
        np.testing.assert_allclose(U[:, :2] @ inner @ Vh[:2], gradient, atol=1e-12)
        np.testing.assert_allclose(np.linalg.eigvalsh(inner + inner.T) / 2, [0, 1], atol=1e-12)


@pytest.mark.parametrize(
    "name", ["spectral", "schatten 3", "ky_fan", "effective_rank", "log_volume", "tail_energy"]
)
def test_second_derivatives_in_three_orders(name):
    norm, oracle = NORMS[name]
    A, E = with_values(SPECTRA["tied"], 5, 4), gaussian((5, 4), seed=5)
    products = jax.jit(derivatives_of(norm, 2))(jnp.asarray(A), jnp.asarray(E))

    def second(E):
        h = 1e-3  # fourth order: the errors of h^4 and eps / h^2 are 1e-11 and 1e-10
        f = [oracle(singular_values(A + i * h * E)) for i in (-2, -1, 0, 1, 2)]
        return np.dot([-1, 16, -30, 16, -1], f) / (12 * h**2)

    F = gaussian((5, 4), seed=6)
    for direction in (E, F):
        mixed = (second(E + direction) - second(E - direction)) / 4
        for mode, product in products.items():
            np.testing.assert_allclose(
                pairing(product, direction), mixed, rtol=1e-6, atol=1e-7, err_msg=mode
            )


def test_tail_energy_is_smooth_at_the_rank_asked_for():
    A = jnp.asarray(with_values((3, 2), 5, 4))
    value, gradient = jax.value_and_grad(lambda a: norms.tail_energy(a, 2))(A)
    assert value < 1e-28
    np.testing.assert_allclose(gradient, 0, atol=1e-14)


# ---------------------------------------------------------------------------------- upper bounds


def hard_cases(count: int, m: int, n: int, dtype) -> np.ndarray:
    """Random matrices of eight kinds: where a bound might fail, and where it should be tight."""
    rng = np.random.default_rng(m * n)
    A = gaussian((count, m, n), dtype, m + n)
    k = min(m, n)
    U, _, Vh = np.linalg.svd(A, full_matrices=False)
    spectra = {
        1: np.ones(k),
        2: np.arange(k) == 0,
        3: 10.0 ** -np.arange(k),
        4: np.where(np.arange(k) < k - 1, 1, 1e-7),
        5: 1 + 1e-7 * np.arange(k)[::-1],
    }
    for kind, s in spectra.items():
        A[kind::8] = (U * s)[kind::8] @ Vh[kind::8]
    A[6::8] = np.abs(A[6::8])
    A[7::8] = np.sign(A[7::8])
    sizes = 10.0 ** rng.integers(-12, 12, count)
    return (A * sizes[:, None, None]).astype(dtype)


@pytest.mark.x32
@pytest.mark.parametrize(
    ("count", "m", "n", "dtype"),
    [
        (4000, 7, 5, np.float32),
        (2000, 3, 8, np.float32),
        (2000, 5, 4, np.complex64),
        (1000, 300, 3, np.float32),  # long sums
        (1000, 6, 6, np.float32),
    ],
)
def test_bound_is_never_below_the_truth(count, m, n, dtype):
    A = hard_cases(count, m, n, dtype)
    truth = singular_values(A)[:, 0]
    for steps in (0, 1, 6):
        bound = double(norms.spectral_bound(jnp.asarray(A), steps))
        assert np.all(bound >= truth)
        assert np.max(bound / truth) <= min(m, n) ** (0.5 ** (steps + 1)) * 1.0002


def test_bound_in_double_precision_and_its_gradient():
    A = jnp.asarray(with_values((3, 2.9, 1), 6, 4))
    bounds = [float(norms.spectral_bound(A, steps)) for steps in (0, 4, 12)]
    assert np.all(np.diff(bounds) < 1e-13)
    assert 3 <= bounds[-1] <= 3 * (1 + 1e-12)
    gradient = jax.grad(lambda a: norms.spectral_bound(a, 12))(A)
    assert_within(gradient, jax.grad(norms.spectral)(A), 1e6)


# ---------------------------------------------------------------------------------- convolutions

CONVOLUTIONS = {
    "1-D circular": ((3, 2, 3), (9, 2), {"padding": "CIRCULAR"}),
    "1-D longer than the input": ((5, 2, 2), (3, 2), {"padding": "CIRCULAR"}),
    "1-D wide padding": ((3, 2, 2), (7, 2), {"padding": ((4, 1),), "strides": 3}),
    "2-D circular, even": ((2, 3, 2, 3), (6, 5, 2), {"padding": "CIRCULAR"}),
    "2-D circular, strided": ((3, 3, 2, 3), (6, 4, 2), {"padding": "CIRCULAR", "strides": 2}),
    "2-D circular, odd strides": ((3, 3, 2, 2), (5, 4, 2), {"padding": "CIRCULAR", "strides": 2}),
    "2-D circular, groups": (
        (3, 2, 2, 4),
        (5, 4, 4),
        {"padding": "CIRCULAR", "groups": 2, "dilation": (2, 1)},
    ),
    "2-D SAME": ((3, 3, 2, 3), (5, 6, 2), {}),
    "2-D SAME, strided": ((3, 3, 2, 3), (5, 6, 2), {"strides": 2}),
    "2-D VALID, strided, dilated": (
        (2, 2, 2, 3),
        (7, 6, 2),
        {"padding": "VALID", "strides": 2, "dilation": 2},
    ),
    "2-D VALID": ((3, 2, 2, 3), (5, 6, 2), {"padding": "VALID"}),
    "3-D circular": ((2, 2, 2, 1, 2), (4, 2, 3, 1), {"padding": "CIRCULAR", "strides": (2, 1, 1)}),
    "3-D SAME": ((2, 3, 2, 1, 2), (3, 4, 2, 1), {}),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param(name, np.float32, marks=pytest.mark.x32) for name in CONVOLUTIONS]
    + [(name, np.complex128) for name in list(CONVOLUTIONS)[4:8]],
)
def test_convolutions(name, dtype):
    shape, inputs, options = CONVOLUTIONS[name]
    kernel = gaussian(shape, dtype, 3)
    layer = operators.Convolution(jnp.asarray(kernel), inputs, **options)
    truth = singular_values(loops(double(kernel), inputs, **options))[0]
    assert_within(norms.spectral(layer), truth, 30)
    bound = float(norms.spectral_bound(layer))
    assert truth <= bound
    if options.get("padding") == "CIRCULAR" and "odd" not in name:
        assert bound <= truth * (1 + 300 * eps(dtype)) * min(shape[-2:]) ** (1 / 128)


def test_convolution_in_another_layout():
    kernel = gaussian((3, 2, 2, 4))
    options = {"padding": "CIRCULAR", "strides": (2, 1)}
    last = operators.Convolution(jnp.asarray(kernel), (6, 5, 2), **options)
    first = operators.Convolution(
        jnp.asarray(kernel.transpose(3, 2, 0, 1)),
        (2, 6, 5),
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
        **options,
    )
    assert_within(norms.spectral(first), norms.spectral(last), 10)
    assert_within(norms.spectral_bound(first), norms.spectral_bound(last), 100)


def convolution_norm(kernel):
    layer = operators.Convolution(kernel, (4, 5, 2), padding="CIRCULAR")
    return norms.spectral(layer)


def test_derivatives_of_a_circular_norm():
    kernel, E = gaussian((3, 2, 2, 2)), gaussian((3, 2, 2, 2), seed=1)
    products = jax.jit(derivatives_of(convolution_norm, 2))(jnp.asarray(kernel), jnp.asarray(E))
    gradient = jax.grad(convolution_norm)(jnp.asarray(kernel))

    def truth(t):
        return singular_values(loops(kernel + t * E, (4, 5, 2), padding="CIRCULAR"))[0]

    h = 1e-3
    f = np.array([truth(i * h) for i in (-2, -1, 0, 1, 2)])
    np.testing.assert_allclose(pairing(gradient, E), f @ [1, -8, 0, 8, -1] / (12 * h), rtol=1e-9)
    for product in products.values():
        curvature = f @ [-1, 16, -30, 16, -1] / (12 * h**2)
        np.testing.assert_allclose(pairing(product, E), curvature, rtol=1e-6)


@pytest.mark.x32
@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
def test_bound_of_convolutions_is_never_below_the_truth(padding):
    """The matrix of the layer is linear in the kernel: one matrix by loops for each entry."""
    shape, inputs, options = (3, 2, 2), (5, 2), {"padding": padding}
    basis = np.eye(np.prod(shape)).reshape(-1, *shape)
    matrices = np.stack([loops(entry, inputs, **options) for entry in basis])
    kernels = gaussian((2000, *shape), np.float32, 9)
    kernels[::2] = np.abs(kernels[::2])  # largest at frequency zero, where no rounding helps
    dense = np.tensordot(double(kernels).reshape(2000, -1), matrices, 1)
    bound = jax.jit(
        jax.vmap(lambda k: norms.spectral_bound(operators.Convolution(k, inputs, **options), 8))
    )
    ratio = double(bound(jnp.asarray(kernels))) / singular_values(dense)[:, 0]
    assert np.min(ratio) >= 1
    assert np.max(ratio) <= (1.01 if padding == "CIRCULAR" else 2)


def test_jacobian_is_the_local_lipschitz_constant():
    def network(params, x):
        return params[1] @ jnp.tanh(params[0] @ x)

    params = jnp.asarray(gaussian((6, 4))), jnp.asarray(gaussian((3, 6), seed=1))
    x = gaussian((4,), seed=2)
    slopes = 1 - np.tanh(double(params[0]) @ x) ** 2
    truth = singular_values(double(params[1]) @ (slopes[:, None] * double(params[0])))[0]
    J = operators.Jacobian(network, params, jnp.asarray(x))
    assert_within(norms.spectral(J), truth, 30)
    assert float(norms.spectral_bound(J)) >= truth


def test_krylov_serves_large_maps():
    A = with_values(1 / (1 + np.arange(60)), 400, 300)
    assert_within(norms.spectral(jnp.asarray(A), method="krylov"), 1.0, 1e4)


# -------------------------------------------------------------------------------- the tracker


def test_tracked_norm_in_a_scan():
    """A slowly changing matrix whose values crowd at the top: within 1 % after 40 steps."""
    A, dA = gaussian((96, 64), seed=1) / 8, gaussian((96, 64), seed=2) / 8e3
    path = jnp.asarray(np.stack([A + t * dA for t in range(40)]))
    init = norms.spectral_init(jax.ShapeDtypeStruct((96, 64), jnp.float64))

    @jax.jit
    def run(state, path):
        def body(state, a):
            sigma, state = norms.spectral_step(a, state)
            return state, sigma

        return jax.lax.scan(body, state, path)

    state, sigmas = run(init, path)
    truth = singular_values(path)[:, 0]
    assert np.all(sigmas <= truth * (1 + 1e-14))
    assert sigmas[-1] >= 0.99 * truth[-1]
    assert jax.tree.structure(state) == jax.tree.structure(init)
    for now, before in zip(jax.tree.leaves(state), jax.tree.leaves(init), strict=True):
        assert (now.shape, now.dtype) == (before.shape, before.dtype)


def test_tracked_norms_of_a_stack_and_their_gradient():
    A = jnp.asarray(stack(np.complex128))
    state = norms.spectral_init(A, extra=1)
    step = jax.jit(norms.spectral_step)
    for _ in range(30):
        sigma, state = step(A, state)
    assert_within(sigma, singular_values(A)[:, 0], 1e3)
    gradient = jax.jit(jax.grad(lambda a, state: jnp.sum(norms.spectral_step(a, state)[0])))(
        A, state
    )
    U, _, Vh = np.linalg.svd(double(A), full_matrices=False)
    wanted = np.conj(U[:, :, :1] @ Vh[:, :1, :])
    np.testing.assert_allclose(gradient, wanted, atol=1e-5)


# ----------------------------------------------------------------------------------- bad input

A43 = jnp.ones((4, 3))

REFUSED = [
    (
        ValueError,
        r"schatten: `p` must be a number > 0, got float -1",
        lambda: norms.schatten(A43, -1.0),
    ),
    (ValueError, r"schatten: `p` must be a number > 0, got int 0", lambda: norms.schatten(A43, 0)),
    (
        TypeError,
        r"schatten: `p` must be a positive number, got str",
        lambda: norms.schatten(A43, "2"),
    ),
    (ValueError, r"log_volume: `eps` must be a number > 0", lambda: norms.log_volume(A43, 0.0)),
    (ValueError, r"core_svd: `k` must satisfy 1 <= k <= 3, got 4", lambda: norms.ky_fan(A43, 4)),
    (ValueError, r"tail_energy: `k` must satisfy 0 <= k <= 3", lambda: norms.tail_energy(A43, -1)),
    (
        ValueError,
        r"spectral: `method` must be one of 'auto'",
        lambda: norms.spectral(A43, method="x"),
    ),
    (ValueError, r"spectral_bound: `steps` must satisfy", lambda: norms.spectral_bound(A43, -1)),
    (TypeError, r"nuclear: `a` must be an array, .*got list", lambda: norms.nuclear([[1.0]])),
    (ValueError, r"frobenius: `a` must have shape \(..., m, n\)", lambda: norms.frobenius(A43[0])),
    (
        ValueError,
        r"spectral_step: `a` must have the shape of the state, \(4, 3\), got \(3, 4\)",
        lambda: norms.spectral_step(A43.T, norms.spectral_init(A43)),
    ),
    (
        TypeError,
        r"spectral_step: `state` must come from spectral_init, got NoneType",
        lambda: norms.spectral_step(A43, None),
    ),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_bad_input(number):
    error, message, call = REFUSED[number]
    with pytest.raises(error, match=message):
        call()


def test_a_traced_p_is_refused_by_name():
    with pytest.raises(TypeError, match="schatten: `p` must be a Python number"):
        jax.eval_shape(functools.partial(norms.schatten, A43), 2.0)
