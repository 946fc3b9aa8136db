"""truncated_svd, randomized_svd, core_svd on large inputs, track: accuracy and exact gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

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


def numpy_residual(A, result):
    A, (U, S, Vh) = np.asarray(A), (np.asarray(x) for x in result)
    V = Vh.conj().T
    right = np.linalg.norm(A @ V - U * S, axis=0)
    left = np.linalg.norm(A.conj().T @ U - V * S, axis=0)
    return max(right.max(), left.max()) / max(S[0], 1e-300)


@pytest.mark.parametrize("method", ["krylov", "subspace", "full"])
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
        assert np.linalg.norm(np.asarray(X.T @ X) - np.eye(K)) <= 10 * eps * K
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


WEIGHTS = np.arange(1.0, K + 1)
G = np.random.default_rng(1).standard_normal((M, N))
E = np.random.default_rng(2).standard_normal((2, M, N))


def loss_of(triplets, is_complex):
    """A loss of single vectors, phases excluded, through any function that returns triplets."""
    dtype = complex if is_complex else float

    def loss(A):
        U, S, Vh = triplets(A)
        weighted = (
            U * jnp.asarray(WEIGHTS * 1.0, U.dtype)[None, :] * (S**2).astype(U.dtype)[None, :]
        )
        part = jnp.sum(jnp.real((weighted @ Vh) * jnp.asarray(G, dtype)))
        return part + jnp.sum(jnp.abs(U[:3]) ** 4 * jnp.asarray(WEIGHTS)[None, :])

    return loss


def leading_of_full(A):
    U, S, Vh = jaxsvd.svd(A, full_matrices=False)
    return U[:, :K], S[:K], Vh[:K]


def relative(x, y):
    return float(jnp.linalg.norm(x - y) / jnp.linalg.norm(y))


def three_hessian_products(loss, A, dA):
    gradient = jax.grad(loss)
    return (
        jax.jvp(gradient, (A,), (dA,))[1],
        jax.grad(lambda A: jax.jvp(loss, (A,), (dA,))[1])(A),
        jax.grad(lambda A: jnp.sum(jnp.real(gradient(A) * dA)))(A),
    )


@pytest.mark.parametrize("is_complex", [False, True])
def test_gradient_and_hessian_equal_those_of_the_full_svd(is_complex):
    A = jnp.asarray(with_spectrum(SPECTRA["slow"], is_complex))
    dA = jnp.asarray(E[0] + 1j * E[1] if is_complex else E[0])
    krylov = loss_of(lambda A: jaxsvd.truncated_svd(A, K, method="krylov"), is_complex)
    full = loss_of(leading_of_full, is_complex)

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(loss, A, dA):
        return (
            jax.grad(loss)(A),
            jax.jvp(loss, (A,), (dA,))[1][None],
            *three_hessian_products(loss, A, dA),
        )

    for ours, exact in zip(derivatives(krylov, A, dA), derivatives(full, A, dA), strict=True):
        assert relative(ours, exact) < 1e-8


@pytest.mark.parametrize("ratio", [0.9, 0.99])
def test_gradient_at_small_gaps(ratio):
    s = np.where(I <= K, 2.0 - I / K * 0.8, 1.2 * ratio * (K + 1.0) / I)
    A = jnp.asarray(with_spectrum(s))
    for shape in (A, A.T):
        weights = jnp.asarray(G if shape is A else G.T)

        def loss(A, triplets, weights=weights):
            U, S, Vh = triplets(A)
            return jnp.sum((U * S[None, :] @ Vh) * weights)

        ours = jax.jit(jax.grad(lambda A: loss(A, lambda A: jaxsvd.truncated_svd(A, K))))(shape)
        exact = jax.jit(jax.grad(lambda A: loss(A, leading_of_full)))(shape)
        assert relative(ours, exact) < 1e-8


def test_core_svd_by_krylov_is_exact_at_ties():
    A = jnp.asarray(with_spectrum(SPECTRA["ties in the kept part"]))
    dA = jnp.asarray(E[0])

    def loss(method):
        def of(A):
            U, C, Vh = jaxsvd.core_svd(A, K, method=method)
            return jnp.sum((U @ C @ C @ C @ Vh) * jnp.asarray(G))

        return of

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(method, A, dA):
        of = loss(method)
        return jax.grad(of)(A), *three_hessian_products(of, A, dA)

    exact, ours = derivatives("full", A, dA), derivatives("krylov", A, dA)
    for x, y in zip(ours, exact, strict=True):
        assert relative(x, y) < 1e-8


def test_parameters_of_operators():
    rng = np.random.default_rng(3)
    base = jnp.asarray(with_spectrum(SPECTRA["exponential"]))
    weights = jnp.asarray(rng.random(N) + 0.5)
    cases = {
        "Function": (
            lambda w: operators.Function(lambda w, x: base @ (w * x), w, (N,)),
            lambda w: base * w[None, :],
            weights,
        ),
        "Centered": (
            lambda a: operators.Centered.of_columns(operators.Dense(a)),
            lambda a: a - jnp.mean(a, axis=0, keepdims=True),
            base + 0.01,
        ),
        "Sum and LowRank": (
            lambda s: operators.Dense(base) + operators.LowRank(base[:, :2], s, base[:2]),
            lambda s: base + (base[:, :2] * s[None, :]) @ base[:2],
            jnp.asarray([0.3, -0.2]),
        ),
    }
    for name, (operator_of, dense_of, parameters) in cases.items():

        def loss(p, triplets, operator_of):
            U, S, Vh = triplets(operator_of(p))
            return jnp.sum((U * S[None, :] @ Vh) * jnp.asarray(G))

        ours = jax.grad(loss)(parameters, lambda A: jaxsvd.truncated_svd(A, K), operator_of)
        exact = jax.grad(loss)(parameters, leading_of_full, dense_of)
        assert relative(ours, exact) < 1e-8, name


def random_sparse(m, n, nonzeros, seed=0):
    rng = np.random.default_rng(seed)
    indices = np.stack([rng.integers(0, m, nonzeros), rng.integers(0, n, nonzeros)], axis=1)
    values = rng.standard_normal(nonzeros)
    values[: m // 10] *= 30  # some large entries: a spectrum with gaps
    return sparse.BCOO((jnp.asarray(values), jnp.asarray(indices)), shape=(m, n))


def test_sparse_gradient_is_sparse_and_exact():
    A = random_sparse(M, N, 3000).sum_duplicates()
    dense = A.todense()

    def loss(A):
        return jnp.sum(jaxsvd.truncated_svd(A, K).U[:50] ** 4)

    gradient = sparse.grad(loss)(A)
    assert isinstance(gradient, sparse.BCOO)
    np.testing.assert_array_equal(gradient.indices, A.indices)
    exact = jax.grad(lambda a: jnp.sum(leading_of_full(a)[0][:50] ** 4))(dense)
    np.testing.assert_allclose(
        gradient.data, exact[A.indices[:, 0], A.indices[:, 1]], atol=1e-8 * float(abs(exact).max())
    )


def test_large_sparse_gradient_never_forms_the_matrix():
    n = 50_000
    A = random_sparse(n, n, 200_000)

    def loss(data):
        result = jaxsvd.truncated_svd(sparse.BCOO((data, A.indices), shape=A.shape), 4, tol=1e-4)
        return jnp.sum(result.S)

    compiled = jax.jit(jax.grad(loss)).lower(A.data).compile()
    analysis = compiled.memory_analysis()
    assert analysis.temp_size_in_bytes < 0.05 * n * n  # 125 MB, where a matrix would be 20 GB


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


def test_gradient_error_follows_the_measured_error():
    A = jnp.asarray(with_spectrum(SPECTRA["slow"]))

    def loss(A, triplets):
        U, S, Vh = triplets(A)
        return jnp.sum((U * S[None, :] @ Vh) * jnp.asarray(G))

    exact = jax.grad(loss)(A, leading_of_full)
    for tol in (1e-2, 1e-4, 1e-6):
        _, info = jaxsvd.truncated_svd(A, K, method="subspace", tol=tol, return_info=True)
        ours = jax.grad(loss)(
            A, lambda A, tol=tol: jaxsvd.truncated_svd(A, K, method="subspace", tol=tol)
        )
        measured = relative(ours, exact)
        assert measured <= 10 * float(info.gradient_error)


def test_start_strict_and_iteration_limit():
    A = jnp.asarray(with_spectrum(SPECTRA["slow"]))
    cold, cold_info = jaxsvd.truncated_svd(A, K, method="subspace", tol=1e-6, return_info=True)
    nearby = A + 1e-6 * jnp.asarray(E[0])
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


@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-5])
@pytest.mark.parametrize("name", ["exponential", "sigmoid"])
def test_adaptive_svd_finds_the_smallest_rank(name, tol):
    s = {"exponential": SPECTRA["exponential"], "sigmoid": 1e-8 + 1 / (1 + np.exp(I - 30.0))}[name]
    A = jnp.asarray(with_spectrum(s))
    tails = np.sqrt(np.cumsum((s**2)[::-1])[::-1] / np.sum(s**2))
    for seed in range(3):
        result, info = jaxsvd.adaptive_svd(
            jax.random.key(seed), A, tol, max_rank=100, return_info=True
        )
        U, S, Vh = (np.asarray(x) for x in result)
        assert np.linalg.norm(A - U * S @ Vh) <= tol * np.linalg.norm(s)
        assert bool(info.converged)
        assert abs(int(info.rank) - np.argmax(tails <= tol)) <= 1
        assert np.count_nonzero(S) == int(info.rank)


def test_adaptive_svd_gradient_is_that_of_its_rank():
    A = jnp.asarray(with_spectrum(SPECTRA["exponential"]))
    key = jax.random.key(0)

    def reconstruction(triplets):
        U, S, Vh = triplets
        return jnp.sum((U * S[None, :] @ Vh) * jnp.asarray(G))

    _, info = jaxsvd.adaptive_svd(key, A, 0.05, max_rank=60, return_info=True)
    rank = int(info.rank)
    ours = jax.grad(lambda A: reconstruction(jaxsvd.adaptive_svd(key, A, 0.05, max_rank=60)))(A)

    def exact(A):
        U, S, Vh = jaxsvd.svd(A, full_matrices=False)
        return reconstruction((U[:, :rank], S[:rank], Vh[:rank]))

    assert relative(ours, jax.grad(exact)(A)) < max(10 * float(info.gradient_error), 1e-4)


def test_track_follows_a_changing_matrix():
    A = jnp.asarray(with_spectrum(SPECTRA["exponential"]))
    drift = 1e-5 * jnp.asarray(E[0]) / np.sqrt(M)
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
    from jaxsvd.primitives.truncated import _truncated_svd

    A = jnp.asarray(with_spectrum(SPECTRA["slow"]))
    jaxsvd.truncated_svd(A, K)
    before = _truncated_svd._cache_size()
    jaxsvd.truncated_svd(A + 1, K)
    assert _truncated_svd._cache_size() == before


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
