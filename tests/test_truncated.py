"""Top-k triplets: the promised accuracy; gradients are in test_truncated_gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsvd
from jaxsvd import operators

M, N, K = 300, 280, 5
I = np.arange(1, N + 1)
SPECTRA = {
    "slow": I**-0.5,
    "exponential": np.exp(-I / 7.0),
    "plateau": np.where(I <= K, 1.0, 0.1),
    "one gap": np.where(I <= K, 1.0 + 1.0 / I, 0.5 / I),
    "ties in the kept part": np.where(I <= K, np.ceil((K + 1 - I) / 2), 0.5 / I),
    "rank below k": np.where(I <= 3, 4.0 - I, 0.0),
}


@functools.cache
def factors(is_complex=False):
    rng = np.random.default_rng(0)

    def unitary(rows, columns):
        X = rng.standard_normal((rows, columns))
        return np.linalg.qr(X + 1j * rng.standard_normal(X.shape) if is_complex else X)[0]

    return unitary(M, N), unitary(N, N)


def with_spectrum(s, is_complex=False):
    U, V = factors(is_complex)
    return (U * s) @ V.conj().T


E = np.random.default_rng(2).standard_normal((M, N))


def numpy_residual(A, result):
    A, (U, S, Vh) = np.asarray(A), (np.asarray(x) for x in result)
    V = Vh.conj().T
    right = np.linalg.norm(A @ V - U * S, axis=0)
    left = np.linalg.norm(A.conj().T @ U - V * S, axis=0)
    return max(right.max(), left.max()) / max(S[0], 1e-300)


@pytest.mark.parametrize("method", ["krylov", "subspace", "gram", "full"])
@pytest.mark.parametrize("name", SPECTRA)
def test_promised_residual_and_orthonormality(name, method):
    s = SPECTRA[name]
    A = jnp.asarray(with_spectrum(s))
    tol = 1e-8 if method == "subspace" else 1e-12
    result, info = jaxsvd.truncated_svd(A, K, method=method, tol=tol, return_info=True)
    assert bool(info.converged)
    assert numpy_residual(A, result) <= max(tol, 1e-13)
    eps = np.finfo(np.float64).eps
    for X in (result.U, result.Vh.T):
        assert np.linalg.norm(np.asarray(X.T @ X) - np.eye(K)) <= 10 * eps * K**0.5
    np.testing.assert_allclose(result.S, s[:K], atol=1e-12 * s[0] + tol**2)
    assert int(info.rank) == np.sum(s[:K] > 1e-12)
    np.testing.assert_allclose(
        jaxsvd.residuals(A, result) / s[0], info.residuals / s[0], atol=1e-13
    )


@pytest.mark.x32
@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-20])
def test_float32(scale):
    A = jnp.asarray((with_spectrum(SPECTRA["slow"]) * scale).astype(np.float32))
    result, info = jaxsvd.truncated_svd(A, K, method="krylov", return_info=True)
    assert bool(info.converged)
    assert numpy_residual(np.float64(A), jax.tree.map(np.float64, result)) <= 1.2e-5
    np.testing.assert_allclose(result.S / scale, SPECTRA["slow"][:K], rtol=1e-5)


def test_vmap_equals_a_leading_axis_and_a_loop():
    stack = jnp.stack([jnp.asarray(with_spectrum(SPECTRA[x])) for x in ("slow", "exponential")])
    native = jaxsvd.truncated_svd(stack, 3, method="krylov")
    mapped = jax.vmap(lambda A: jaxsvd.truncated_svd(A, 3, method="krylov"))(stack)
    for x, y in zip(native, mapped, strict=True):
        np.testing.assert_array_equal(x, y)
    for i in range(2):
        np.testing.assert_allclose(
            native.S[i], jaxsvd.truncated_svd(stack[i], 3, method="krylov").S, rtol=1e-12
        )
    keys = jax.random.split(jax.random.key(0), 2)
    both = jax.vmap(lambda key: jaxsvd.randomized_svd(key, stack[0], 3, power_iterations=20).S)(
        keys
    )
    np.testing.assert_allclose(both[0], both[1], rtol=1e-6)


def test_randomized_svd_is_deterministic_and_reports_its_residual():
    A = jnp.asarray(with_spectrum(SPECTRA["exponential"]))
    key = jax.random.key(7)
    result, info = jaxsvd.randomized_svd(key, A, K, power_iterations=4, return_info=True)
    again = jaxsvd.randomized_svd(key, A, K, power_iterations=4)
    for x, y in zip(result, again, strict=True):
        np.testing.assert_array_equal(x, y)
    assert int(info.products) == 10 * (K + 10)
    reported = float(info.residuals.max() / result.S[0])
    assert reported == pytest.approx(numpy_residual(A, result), rel=1e-6, abs=1e-14)
    np.testing.assert_allclose(result.S, SPECTRA["exponential"][:K], rtol=1e-8)


def test_start_strict_and_iteration_limit():
    A = jnp.asarray(with_spectrum(SPECTRA["slow"]))
    cold, cold_info = jaxsvd.truncated_svd(A, K, method="subspace", tol=1e-6, return_info=True)
    nearby = A + 1e-6 * jnp.asarray(E)
    _, warm_info = jaxsvd.truncated_svd(
        nearby, K, method="subspace", tol=1e-6, start=cold, return_info=True
    )
    assert int(warm_info.iterations) < int(cold_info.iterations)
    short = {"method": "krylov", "max_iterations": 3, "return_info": True}
    result, info = jaxsvd.truncated_svd(A, K, tol=1e-12, **short)
    assert not bool(info.converged)
    assert bool(jnp.isfinite(result.U).all())
    strict, _ = jaxsvd.truncated_svd(A, K, tol=1e-12, strict=True, **short)
    assert bool(jnp.isnan(strict.U).all())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_in_nan_out(value):
    A = jnp.asarray(with_spectrum(SPECTRA["slow"])).at[3, 4].set(value)
    for method in ("krylov", "subspace", "full"):
        result, info = jaxsvd.truncated_svd(A, K, method=method, return_info=True)
        assert all(bool(jnp.isnan(x).all()) for x in result), method
        assert not bool(info.converged)


RANKS = {
    "i^-2": I**-2.0,
    "exponential": SPECTRA["exponential"],
    "sigmoid": 1e-4 + 1 / (1 + np.exp(np.minimum(I - 30.0, 700))),
}


@functools.partial(jax.jit, static_argnums=(2, 3))
def adaptive_over_seeds(keys, A, tol, max_rank):
    return jax.vmap(
        lambda key: jaxsvd.adaptive_svd(key, A, tol, max_rank=max_rank, return_info=True)
    )(keys)


# A relative error of 1e-6 keeps 97 triplets of the exponential and all 280 of the other two.
@pytest.mark.parametrize(
    ("tol", "dtype", "names", "max_rank", "seeds"),
    [
        pytest.param(1e-1, np.float32, RANKS, 48, 100, id="0.1"),
        pytest.param(1e-2, np.float32, RANKS, 48, 100, id="0.01"),
        pytest.param(1e-6, np.float64, ["exponential"], 112, 5, id="1e-6"),
        pytest.param(1e-6, np.float64, ["i^-2", "sigmoid"], N, 1, id="1e-6, all"),
    ],
)
def test_adaptive_svd_finds_the_smallest_rank(tol, dtype, names, max_rank, seeds):
    keys = jax.random.split(jax.random.key(0), seeds)
    for name in names:
        A = with_spectrum(RANKS[name]).astype(dtype)
        s = np.linalg.svd(A.astype(np.float64), compute_uv=False)
        tails = np.sqrt(np.append(np.cumsum((s**2)[::-1])[::-1], 0))
        smallest = np.argmax(tails <= tol * tails[0])
        result, info = adaptive_over_seeds(keys, jnp.asarray(A), tol, max_rank)
        assert bool(np.all(info.converged)), name
        assert np.all(abs(np.asarray(info.rank) - smallest) <= 16), name
        np.testing.assert_array_equal(np.count_nonzero(result.S, axis=1), info.rank)
        for U, S, Vh in zip(*(np.float64(x) for x in result), strict=True):
            assert np.linalg.norm(A - (U * S) @ Vh) <= tol * tails[0], name


def test_track_follows_a_changing_matrix():
    A = jnp.asarray(with_spectrum(SPECTRA["exponential"]))
    drift = 1e-5 * jnp.asarray(E) / np.sqrt(M)
    state = jaxsvd.track.init(A, K)
    for _ in range(15):
        state, _, info = jaxsvd.track.step(A, state, tol=1e-6)
    assert bool(info.converged)

    def body(carry, _):
        A, state = carry
        A = A + drift
        state, result, info = jaxsvd.track.step(A, state, tol=1e-3)
        return (A, state), (result.S, info.residuals, info.converged)

    (A, _), (S, _, converged) = jax.lax.scan(body, (A, state), None, length=5)
    assert bool(converged.all())
    assert int(info.products) == 2 * (K + 16)
    np.testing.assert_allclose(S[-1], np.linalg.svd(np.asarray(A))[1][:K], rtol=1e-4)


def test_no_retrace_when_only_data_changes():
    traces = []

    def times(w, x):  # runs when a program is traced, never when it is reused
        traces.append(None)
        return w * x

    def call(w, start):
        op = operators.Function(times, w, (N,))
        traces.clear()  # the operator looks at its function's output shape
        return jaxsvd.truncated_svd(op, K, start=start, return_info=True)

    first, _ = call(jnp.asarray(SPECTRA["exponential"]), None)
    warm, _ = call(jnp.asarray(SPECTRA["slow"]), first)
    assert traces
    again, info = call(jnp.asarray(SPECTRA["one gap"]), warm)
    assert not traces
    assert bool(info.converged)
    np.testing.assert_allclose(again.S, SPECTRA["one gap"][:K], rtol=1e-9)


def test_scan_over_a_sequence_with_warm_start():
    A = with_spectrum(SPECTRA["exponential"])
    drift = 1e-6 * E / np.sqrt(M)
    options = {"method": "subspace", "tol": 1e-6, "return_info": True}

    @jax.jit
    def sequence(A, start):
        def body(carry, _):
            A, start = carry
            result, info = jaxsvd.truncated_svd(A, K, start=start, **options)
            return (A + drift, result), (result.S, info.iterations, info.converged)

        return jax.lax.scan(body, (A, start), None, length=4)[1]

    start, cold = jaxsvd.truncated_svd(jnp.asarray(A), K, **options)
    S, iterations, converged = sequence(jnp.asarray(A), start)
    assert bool(converged.all())
    assert int(iterations.max()) < int(cold.iterations)
    for step in range(4):
        exact = np.linalg.svd(A + step * drift, compute_uv=False)[:K]
        np.testing.assert_allclose(S[step], exact, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda A: jaxsvd.truncated_svd(A, 0), "`k` must satisfy 1 <= k <= 4, got 0"),
        (lambda A: jaxsvd.truncated_svd(A, 5), "`k` must satisfy 1 <= k <= 4, got 5"),
        (lambda A: jaxsvd.truncated_svd(A, 1, tol=1e-17), "`tol` must be at least .* can reach"),
        (lambda A: jaxsvd.truncated_svd(A, 1, method="fast"), "`method` must be one of 'auto'"),
        (lambda A: jaxsvd.truncated_svd("A", 1), "`a` must be an array, a BCOO or BCSR"),
        (lambda A: jaxsvd.truncated_svd(A, 1, start=3), "`start` must be an earlier SVDResult"),
        (lambda A: jaxsvd.randomized_svd(0, A, 1), "`key` must come from jax.random.key, got int"),
        (lambda A: jaxsvd.randomized_svd(jax.random.key(0), A, 9), "`k` must satisfy"),
        (
            lambda A: jaxsvd.adaptive_svd(jax.random.key(0), A, 1e-9, max_rank=2),
            "`tol` must be at least .* can tell from rounding",
        ),
        (
            lambda A: jaxsvd.adaptive_svd(jax.random.key(0), A, 0.1, max_rank=5),
            "`max_rank` must satisfy 1 <= max_rank <= 4, got 5",
        ),
        (lambda A: jaxsvd.residuals(A, jaxsvd.svd(A.T)), "`result` must have shapes"),
        (lambda A: jaxsvd.track.init(A[None], 1), "`a` must be one matrix"),
        (lambda A: jax.jit(jaxsvd.truncated_svd)(A, 2), "`k` must be a Python int known at trace"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(jnp.ones((6, 4)))
