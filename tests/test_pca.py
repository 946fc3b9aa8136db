"""jaxsvd.models.pca against scikit-learn, and its derivatives against finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
from helpers import FLOAT32, FLOAT64, eps, finite_differences, gaussian, orthonormal
from jax.experimental import sparse
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, IncrementalPCA, TruncatedSVD

import jaxsvd
from jaxsvd import operators
from jaxsvd.models import pca

# Beside scikit-learn's names, with an underscore behind.
FIELDS = (
    "mean",
    "components",
    "singular_values",
    "explained_variance",
    "explained_variance_ratio",
    "noise_variance",
)
K = 6


@pytest.fixture(scope="module")
def digits():
    return load_digits().data[:600]


def samples(dtype=np.float64, m=40, n=7):
    """Correlated samples of distinct variances, far from the origin."""
    scales = 1.5 ** -np.arange(n)
    x = gaussian((m, n), seed=1) * scales @ orthonormal(n, n, seed=2).T
    return (x + np.arange(n)).astype(dtype)


def assert_equals(model, reference, tol=1e-5, fields=FIELDS):
    for name in fields:
        wanted = getattr(reference, f"{name}_")
        scale = np.max(np.abs(wanted))
        np.testing.assert_allclose(getattr(model, name), wanted, rtol=0, atol=tol * scale)


# ---------------------------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("whiten", [False, True])
def test_digits(digits, dtype, whiten):
    x = digits.astype(dtype)
    tol = 1e-5 if dtype == np.float32 else 1e-10
    reference = PCA(K, whiten=whiten, svd_solver="full").fit(digits)
    model = pca.fit(x, K, whiten=whiten)
    assert model.components.dtype == dtype
    assert_equals(model, reference, tol)
    scores = reference.transform(digits)
    size = np.max(np.abs(scores))
    np.testing.assert_allclose(pca.transform(model, x), scores, rtol=0, atol=tol * size)
    back = reference.inverse_transform(scores)
    got = pca.inverse_transform(model, scores.astype(dtype))
    np.testing.assert_allclose(got, back, rtol=0, atol=20 * tol)
    # The likelihood does not depend on how scores are scaled (in scikit-learn it does).
    reference = PCA(K, svd_solver="full").fit(digits)
    np.testing.assert_allclose(pca.score(model, x), reference.score(digits), rtol=tol)
    np.testing.assert_allclose(
        pca.score_samples(model, x), reference.score_samples(digits), rtol=10 * tol
    )


@pytest.mark.parametrize("solver", ["full", "gram", "krylov", "subspace"])
def test_every_solver_finds_the_same(digits, solver):
    assert_equals(pca.fit(digits, 3, solver=solver), PCA(3, svd_solver="full").fit(digits), 1e-9)


def test_all_components_and_whole_scores(digits):
    x = digits[:, 10:14]  # four features that vary
    model, reference = pca.fit(x), PCA(svd_solver="full").fit(x)
    assert_equals(model, reference, 1e-10)
    assert model.noise_variance == 0  # nothing is left out
    np.testing.assert_allclose(pca.score_samples(model, x), reference.score_samples(x), rtol=1e-9)
    np.testing.assert_allclose(pca.inverse_transform(model, pca.transform(model, x)), x, atol=1e-10)


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.99])
def test_energy_chooses_the_rank_of_scikit_learn(digits, energy):
    reference = PCA(energy, svd_solver="full").fit(digits)
    model = pca.fit(digits, energy=energy)
    assert model.components.shape[0] == reference.n_components_
    assert_equals(model, reference, 1e-10)


def test_energy_of_a_large_matrix_is_found_by_growing():
    x = gaussian((300, 290), seed=3) * np.arange(1, 291) ** -0.5
    reference = PCA(0.8, svd_solver="full").fit(x)
    assert reference.n_components_ > pca.FIRST_TRIAL
    model = pca.fit(x, energy=0.8)
    assert model.components.shape[0] == reference.n_components_
    assert_equals(model, reference, 1e-6)


# ---------------------------------------------------------------------------------------- sparse


@pytest.fixture(scope="module")
def table():
    # Features of distinct scales, so that components are well determined.
    x = scipy.sparse.random(400, 300, 0.03, random_state=0, format="csr")
    return x @ scipy.sparse.diags(1.3 ** -np.arange(300.0).clip(max=20))


def test_sparse_samples_are_those_of_scikit_learn(table):
    reference = PCA(5, svd_solver="arpack").fit(table)
    bcoo = sparse.BCOO.from_scipy_sparse(table.tocoo())
    forms = (table, bcoo, sparse.BCSR.from_bcoo(bcoo.sort_indices()), operators.as_operator(bcoo))
    for form in forms:
        model = pca.fit(form, 5)
        assert_equals(model, reference, 1e-8)
        np.testing.assert_allclose(
            pca.transform(model, form), reference.transform(table), atol=1e-8
        )


def test_of_centred_data_it_is_the_truncated_svd(table):
    x = table.toarray() - table.toarray().mean(0)
    reference = TruncatedSVD(5, algorithm="arpack").fit(x)
    for form in (x, operators.Dense(x)):
        model = pca.fit(form, 5, solver="krylov")
        np.testing.assert_allclose(model.singular_values, reference.singular_values_, rtol=1e-9)
        inner = np.sum(np.asarray(model.components) * reference.components_, axis=1)
        np.testing.assert_allclose(np.abs(inner), 1, rtol=1e-9)


def test_operators_without_entries(table):
    """Only products are known, on either side; the total variance comes from them alone."""
    for x in (table.toarray(), table.toarray()[:40]):
        reference = PCA(3, svd_solver="arpack").fit(x)
        op = operators.Function(lambda a, v: a @ v, jnp.asarray(x), (x.shape[1],), np.float64)
        assert_equals(pca.fit(op, 3), reference, 1e-8)


@pytest.mark.parametrize("k", [3, 30])
def test_samples_outside_memory(tmp_path, k):
    x = np.asarray(samples(m=500, n=40))
    np.save(tmp_path / "samples.npy", x)
    op = operators.RowBlocks(str(tmp_path / "samples.npy"), rows=64)
    reference = PCA(k, svd_solver="full").fit(x)
    model = pca.fit(op, k)
    # The last variances are 1e-10 of the first, and what is left of the total is its rounding.
    assert_equals(model, reference, 1e-5, FIELDS[:-1])
    assert abs(model.noise_variance - reference.noise_variance_) < 1e-12 * model.total_variance
    np.testing.assert_allclose(pca.transform(model, op), reference.transform(x), atol=1e-5)


def test_a_sparse_matrix_is_never_made_dense():
    """5e4 x 5e4 would be 20 GB."""
    n, count = 50_000, 3000
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, n, (2, count))
    data = rng.standard_normal(count)
    rows[:40], columns[:40] = 7, np.arange(40)  # a row that stands out
    data[:40] = 50
    x = scipy.sparse.coo_array((data, (rows, columns)), (n, n)).tocsr()
    model = pca.fit(x, 2, tol=1e-6)
    wanted = np.zeros(n)
    wanted[:40] = 40**-0.5
    np.testing.assert_allclose(model.components[0], wanted, atol=1e-2)
    dense_total = x.power(2).sum() - n * np.sum(np.asarray(x.mean(axis=0)) ** 2)
    np.testing.assert_allclose(model.total_variance, dense_total / (n - 1), rtol=1e-10)


def test_coordinates_that_come_twice_add_up():
    indices = np.array([[0, 0], [1, 1], [0, 0], [2, 1], [5, 9]])  # the last is padding
    x = sparse.BCOO((jnp.array([1.0, 2.0, 3.0, -1.0, 9.0]), jnp.asarray(indices)), shape=(3, 2))
    dense = np.array([[4.0, 0], [0, 2], [0, -1]])
    model, wanted = pca.fit(x, 1), pca.fit(dense, 1)
    np.testing.assert_allclose(model.total_variance, wanted.total_variance)
    np.testing.assert_allclose(model.components, wanted.components, atol=1e-12)
    empty = sparse.BCOO((jnp.zeros(0), jnp.zeros((0, 2), jnp.int32)), shape=(3, 2))
    assert pca.fit(empty, 1).total_variance == 0


# ----------------------------------------------------------------------------------- incremental


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_updates_are_those_of_incremental_pca(digits, dtype):
    # The two largest values end at 314.76 and 312.87: an eps in the matrix is 167 in their vectors.
    tol = 3 * 167 * eps(np.float32) if dtype == np.float32 else 1e-10
    reference = IncrementalPCA(K)
    model = None
    for batch in np.split(digits, [150, 300, 450]):
        reference.partial_fit(batch)
        batch = batch.astype(dtype)
        model = pca.fit(batch, K) if model is None else pca.update(model, batch)
        assert_equals(model, reference, tol, FIELDS[:-1])
        assert int(model.samples) == reference.n_samples_seen_
    np.testing.assert_allclose(model.total_variance, digits.var(0, ddof=1).sum(), rtol=tol)
    got = pca.transform(model, digits.astype(dtype))
    np.testing.assert_allclose(got, reference.transform(digits), atol=100 * tol)


def test_the_noise_of_an_incremental_model_remembers_all_batches(digits):
    """IncrementalPCA's own knows the last batch alone, and shrinks with each one."""
    model, reference = pca.fit(digits[:100], K), IncrementalPCA(K).fit(digits[:100])
    for i in range(100, 600, 100):
        model = pca.update(model, digits[i : i + 100])
        reference.partial_fit(digits[i : i + 100])
    truth = PCA(K, svd_solver="full").fit(digits).noise_variance_
    assert abs(model.noise_variance / truth - 1) < 0.05
    assert reference.noise_variance_ < truth / 3


def test_updates_run_in_a_scan_and_lose_nothing_of_full_rank():
    x = samples(m=60)
    model = pca.fit(x[:20])
    batches = jnp.asarray(x[20:].reshape(4, 10, 7))
    scanned = jax.lax.scan(lambda s, b: (pca.update(s, b), None), model, batches)[0]
    assert_equals(scanned, PCA(svd_solver="full").fit(x), 1e-10, FIELDS[:-1])
    one = model
    for row in x[20:25]:  # batches of one sample
        one = pca.update(one, row[None])
    assert_equals(one, PCA(svd_solver="full").fit(x[:25]), 1e-10, FIELDS[:-1])


# ---------------------------------------------------------------------------------- derivatives


def shared(x):
    """Losses of everything a state holds, in one program."""
    model = pca.fit(x, 3, whiten=True)
    scores = pca.transform(model, x)
    weights = jnp.sin(jnp.arange(scores.size, dtype=x.dtype)).reshape(scores.shape)
    back = pca.inverse_transform(model, scores)
    return jnp.stack(
        [
            jnp.sum(weights * scores),  # depends on single components and their signs
            jnp.sum((back - x) ** 2),
            pca.score(model, x),
            jnp.sum(model.components[0] * jnp.arange(7.0)) + model.noise_variance,
        ]
    )


@pytest.mark.parametrize("m", [12, 6])
def test_gradients_are_those_of_finite_differences(m):
    x = samples(m=m)
    got = jax.jit(jax.jacrev(shared))(x)
    forward = jax.jit(jax.jacfwd(shared))(x)
    for i in range(4):
        wanted = finite_differences(lambda x, i=i: shared(x)[i], x)
        np.testing.assert_allclose(got[i], wanted, atol=1e-6 * np.max(np.abs(wanted)))
        np.testing.assert_allclose(got[i], forward[i], atol=1e-9 * np.max(np.abs(wanted)))


def test_gradients_through_the_iteration_and_sparse_values(table):
    """The values of a sparse matrix, through implicit centring and Lanczos."""
    bcoo = sparse.BCOO.from_scipy_sparse(table.tocoo())
    direction = jnp.asarray(gaussian(bcoo.data.shape, seed=5))
    fixed = jnp.asarray(gaussian((300, 2), seed=6))

    @jax.jit
    def loss(data):
        model = pca.fit(sparse.BCOO((data, bcoo.indices), shape=bcoo.shape), 2, solver="krylov")
        projected = model.components.T @ (model.components @ fixed)
        return jnp.sum(projected[:50] ** 2) + model.noise_variance + jnp.sum(model.mean**2)

    gradient = jax.grad(loss)(bcoo.data)
    assert gradient.shape == bcoo.data.shape
    step = 1e-5
    up, down = (loss(bcoo.data + s * step * direction) for s in (1, -1))
    np.testing.assert_allclose(gradient @ direction, (up - down) / (2 * step), rtol=1e-5)


def test_reconstructions_are_differentiable_at_ties_inside():
    """Two equal variances: the raw singular vectors turn freely, their span does not."""
    U = orthonormal(9, 4, seed=4)
    U = np.linalg.qr(np.concatenate([np.ones((9, 1)), U], axis=1))[0][:, 1:]  # of mean zero
    x = U * np.array([3.0, 3, 1, 0.5]) @ orthonormal(4, 4, seed=5).T

    def loss(x):
        model = pca.fit(x, 2)
        back = pca.inverse_transform(model, pca.transform(model, x))
        return jnp.sum(jnp.sin(back))

    gradient = jax.jit(jax.grad(loss))(x)
    np.testing.assert_allclose(gradient, finite_differences(loss, x), atol=1e-7)


def test_the_best_linear_autoencoder_is_the_model():
    """Adam on |X W D - X|^2 ends at the span of the components and at their error."""
    x = samples(m=30, n=5)
    x = x - x.mean(0)
    k = 2
    model = pca.fit(x, k)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 4000))

    def loss(weights):
        return jnp.mean(jnp.sum((x @ weights[0] @ weights[1] - x) ** 2, axis=1))

    @jax.jit
    def train(weights):
        def step(carry, _):
            weights, state = carry
            updates, state = optimizer.update(jax.grad(loss)(weights), state)
            return (optax.apply_updates(weights, updates), state), None

        return jax.lax.scan(step, (weights, optimizer.init(weights)), None, 4000)[0][0]

    with jax.numpy_dtype_promotion("standard"):  # optax promotes its counters
        weights = train([jnp.asarray(gaussian(shape)) for shape in ((5, k), (k, 5))])
    back = pca.inverse_transform(model, pca.transform(model, x))
    optimum = np.mean(np.sum((np.asarray(back) - x) ** 2, axis=1))
    assert optimum * (1 - 1e-12) <= loss(weights) <= optimum * (1 + 1e-5)
    angles = jaxsvd.linalg.principal_angles(weights[1].T, model.components.T)
    assert jnp.max(angles) < 1e-2
    # The optimum itself is a critical point: the gradient there is rounding.
    slopes = jax.grad(loss)([model.components.T, model.components])
    assert max(float(jnp.max(jnp.abs(s))) for s in slopes) < 1e-13 * float(jnp.sum(x**2))


# -------------------------------------------------------------------------------- transformations


@pytest.mark.x32
def test_jit_vmap_and_pytrees():
    stack = np.stack([samples(np.float32), 2 * samples(np.float32)[::-1]])
    fits = jax.vmap(lambda x: pca.fit(x, 2, whiten=True))(stack)
    assert fits.components.shape == (2, 2, 7)
    assert fits.explained_variance_ratio.shape == (2, 2)
    one = jax.jit(pca.fit, static_argnums=1, static_argnames="whiten")(stack[1], 2, whiten=True)
    each = jax.tree.map(lambda x: x[1], fits)
    assert jax.tree.structure(each) == jax.tree.structure(one)
    assert each.whiten is True
    np.testing.assert_allclose(each.components, one.components, atol=1e-5)
    np.testing.assert_allclose(fits.noise_variance[1], one.noise_variance, rtol=1e-4)
    scores = jax.vmap(pca.transform)(fits, stack)
    np.testing.assert_allclose(jnp.std(scores, axis=1, ddof=1), np.ones((2, 2)), rtol=1e-5)


@pytest.mark.x32
def test_a_large_mean_costs_no_digits():
    """Long sums in float32 err by many eps; centring twice does not."""
    x = gaussian((20_000, 3), seed=8) * np.array([3.0, 2, 1]) + 1000
    x = x.astype(np.float32)
    model, reference = pca.fit(x, 2), PCA(2, svd_solver="full").fit(x.astype(np.float64))
    np.testing.assert_allclose(model.mean, reference.mean_, rtol=3 * eps(np.float32))
    assert_equals(model, reference, 1e-5, FIELDS[2:])


@pytest.mark.x32
def test_half_precision_is_computed_in_single():
    x = jnp.asarray(samples(np.float32)).astype(jnp.bfloat16)
    model = pca.fit(x, 2)
    assert model.components.dtype == jnp.float32
    wanted = pca.fit(x.astype(jnp.float32), 2)
    np.testing.assert_array_equal(model.components, wanted.components)
    assert pca.transform(model, x).dtype == jnp.float32


# -------------------------------------------------------------------------------------- bad input


def test_fewer_samples_than_features_and_components_beyond_the_rank():
    x = samples(m=4, n=7)
    model = pca.fit(x)  # four components, of which the last has no variance left
    assert_equals(model, PCA(svd_solver="full").fit(x), 1e-10, ("mean", "singular_values"))
    V = np.asarray(model.components)
    np.testing.assert_allclose(V @ V.T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(pca.inverse_transform(model, pca.transform(model, x)), x, atol=1e-12)
    assert np.isnan(pca.score(model, x))  # no density
    white = pca.transform(dataclasses.replace(model, whiten=True), x)
    np.testing.assert_allclose(np.std(white, axis=0, ddof=1), [1, 1, 1, 0], atol=1e-10)
    with pytest.raises(ValueError, match=r"^pca.fit: `k` must satisfy 1 <= k <= 4, got 5$"):
        pca.fit(x, 5)
    low = np.outer(np.arange(6.0), np.ones(3))  # rank one
    model = pca.fit(low, 2)
    np.testing.assert_allclose(model.explained_variance_ratio, [1, 0], atol=1e-12)
    assert model.noise_variance == 0
    assert np.isnan(pca.score(model, low))


def test_constant_features_and_constant_samples():
    x = samples()
    x[:, 3] = 0.1
    for form in (x, sparse.BCOO.fromdense(x)):
        model = pca.fit(form, 4)
        assert np.max(np.abs(model.components[:, 3])) < 1e-12
    model = pca.fit(np.full((5, 3), 0.1), 2)
    np.testing.assert_array_equal(model.explained_variance_ratio, [0, 0])
    np.testing.assert_allclose(model.mean, 0.1)
    assert np.all(np.isfinite(model.components))
    white = dataclasses.replace(model, whiten=True)
    np.testing.assert_array_equal(pca.transform(white, np.ones((2, 3))), np.zeros((2, 2)))
    assert pca.fit(np.full((5, 3), 0.1), energy=0.5).components.shape == (1, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_in_nan_out(bad):
    x = samples()
    x[3, 2] = bad
    for form in (x, operators.Dense(x), scipy.sparse.csr_array(x)):
        model = pca.fit(form, 2)
        for name in ("components", "singular_values", "total_variance", "noise_variance"):
            assert np.all(np.isnan(getattr(model, name))), name
    with pytest.raises(ValueError, match=r"pca.fit: `x` must be finite"):
        pca.fit(x, energy=0.5)
    model = pca.update(pca.fit(samples(), 2), x)
    assert np.all(np.isnan(model.components))


def test_messages():
    x, model = samples(), pca.fit(samples(), 2)
    for call, error, message in (
        (lambda: pca.fit([[1.0, 2.0]]), TypeError, "fit: `a` must be an array, a BCOO"),
        (lambda: pca.fit(x + 1j), TypeError, "fit: `x` must be real, got dtype complex128"),
        (lambda: pca.fit(x[0]), ValueError, r"fit: `x` must have shape \(samples, features\)"),
        (lambda: pca.fit(x[:1]), ValueError, "fit: `x` must hold at least 2 samples, got"),
        (lambda: pca.fit(x, 0), ValueError, "fit: `k` must satisfy 1 <= k <= 7, got 0"),
        (lambda: pca.fit(x, 2.0), TypeError, "fit: `k` must be an int, got float 2.0"),
        (lambda: pca.fit(x, 2, energy=0.5), ValueError, "fit: give `k` or `energy`, not both"),
        (lambda: pca.fit(x, energy=1.5), ValueError, "fit: `energy` must satisfy 0 < energy <= 1"),
        (lambda: pca.fit(x, energy="a"), TypeError, "fit: `energy` must be a Python float"),
        (lambda: jax.jit(lambda x: pca.fit(x, energy=0.5))(x), TypeError, "outside of jit"),
        (lambda: pca.fit(x, 2, solver="arpack"), ValueError, "fit: `solver` must be one of 'auto'"),
        (lambda: pca.fit(x, 2, whiten=1), TypeError, "fit: `whiten` must be True or False"),
        (lambda: pca.update(model, x[:, :3]), ValueError, r"update: `batch` must have shape"),
        (lambda: pca.update(model, x[:0]), ValueError, "with at least one sample"),
        (lambda: pca.update(model, x + 1j), TypeError, "update: `batch` must be real"),
        (lambda: pca.transform(model, x[:, :3]), ValueError, r"transform: `x` must have shape"),
        (lambda: pca.transform(model, scipy.sparse.csr_array(x[:, :3])), ValueError, "transform"),
        (lambda: pca.inverse_transform(model, x), ValueError, r"`scores` must .* \(samples, 2\)"),
        (lambda: pca.score(model, x[0]), ValueError, "score: `x` must have shape"),
    ):
        with pytest.raises(error, match=message):
            call()
