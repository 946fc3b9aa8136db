"""Every product of every public function, and of its gradient, asks for the highest precision.

On a CPU the precision of a product is ignored, so no number computed here could tell: the programs
are read instead, with all programs inside them.
"""

import inspect

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.experimental import sparse

import jaxsvd
from jaxsvd import linalg, norms, operators, regularizers, rules, streaming, track
from jaxsvd import transforms as optimizers
from jaxsvd.models import completion, image, pca, robust
from jaxsvd.norms.convolution import circular_norm, convolution_bound
from tests.test_lowering import FUNCTIONS as DECOMPOSITIONS
from tests.test_lowering import square

pytestmark = pytest.mark.x32

HIGHEST = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
PRODUCTS = ("dot_general", "ragged_dot_general", "conv_general_dilated")

# Products of sketches that are corrected later may ask for less: name of a function here, and why.
# There are none.
EARLY: dict[str, str] = {}


def covariance(A):
    """Return a positive definite matrix made of A without a product."""
    a = square(A)
    n = a.shape[0]
    return (a + a.T) / 2 + n * jnp.eye(n, dtype=a.dtype)


def thin(A):
    return jaxsvd.svd(A, full_matrices=False)


def tree(A):
    return {"w": A, "v": 2 * A.T}


def updated(transformation):
    """Return a function of the updates of one step of an optax transformation."""

    def step(A):
        params = tree(A)
        return transformation.update(
            jax.tree.map(jnp.sin, params), transformation.init(params), params
        )

    return step


def kernel(A):
    """Return a convolution whose kernel (3, 3, 2, 2) is made of the entries of A."""
    return operators.Convolution(jnp.reshape(A[:9, :4], (3, 3, 2, 2)), (8, 8, 2))


def numbers(A):
    return rules.full_numbers(thin(A), 2)


def leading(result, k=2):
    return jaxsvd.SVDResult(result.U[:, :k], result.S[:k], result.Vh[:k])


def observed(A):
    """Return every third entry of A as a sparse matrix."""
    m, n = A.shape
    at = np.arange(0, m * n, 3)
    indices = jnp.asarray(np.stack([at // n, at % n], axis=1))
    return sparse.BCOO((jnp.ravel(A)[::3], indices), shape=(m, n))


def stream(A):
    n = A.shape[1]
    left = streaming.update(streaming.init(n, 2, dtype=A.dtype), A)
    right = streaming.update(streaming.init(n, 2, dtype=A.dtype), 2 * A)
    return streaming.finalize(streaming.merge(left, right))


def tracked(A):
    return track.step(A, track.init(A, 2, extra=2))


DECOMPOSED = {
    **DECOMPOSITIONS,
    "core_map": lambda A: jaxsvd.core_map(jnp.sqrt, jaxsvd.core_svd(A, 2).C),
    "hermitian_sum": lambda A: jaxsvd.hermitian_sum(jnp.exp, square(A)),
    "residuals": lambda A: jaxsvd.residuals(A, leading(thin(A))),
    "svd_update": lambda A: jaxsvd.svd_update(leading(thin(A)), A[:3]),
    "gauge_check": lambda A: jaxsvd.gauge_check(thin(A), on="nan"),
    "safe": lambda A: jaxsvd.safe(lambda A: jnp.linalg.svd(A, full_matrices=False))(A),
    "svd by eigh": lambda A: jaxsvd.svd(covariance(A), hermitian=True),
    "svd jacobi": lambda A: jaxsvd.svd(A[:9, :8], method="jacobi"),
    "svd gram": lambda A: jaxsvd.svd(jnp.tile(A, (40, 1)), full_matrices=False),
    "streaming": stream,
    "track": tracked,
}

LINALG = {
    "cond": linalg.cond,
    "expm": lambda A: linalg.expm(covariance(A)),
    "inverse_root": lambda A: linalg.inverse_root(covariance(A), 2),
    "jordan_wielandt": linalg.jordan_wielandt,
    "kabsch": lambda A: linalg.kabsch(A[:, :3], jnp.sin(A[:, :3])),
    "log_euclidean_distance": lambda A: linalg.log_euclidean_distance(
        covariance(A), 2 * covariance(A)
    ),
    "logm": lambda A: linalg.logm(covariance(A)),
    "lstsq": lambda A: linalg.lstsq(A, A[:, 0]),
    "matrix_rank": linalg.matrix_rank,
    "null_space": lambda A: linalg.null_space(A, rank=3),
    "optimal_rank": lambda A: linalg.optimal_rank(jaxsvd.svdvals(A), A.shape),
    "orth": lambda A: linalg.orth(A, rank=3),
    "orthogonalize": linalg.orthogonalize,
    "pinv": linalg.pinv,
    "polar": linalg.polar,
    "polar left": lambda A: linalg.polar(A, "left"),
    "principal_angles": lambda A: linalg.principal_angles(A[:, :2], A[:, 2:4]),
    "procrustes": lambda A: linalg.procrustes(A, jnp.sin(A)),
    "rank_for_energy": lambda A: linalg.rank_for_energy(jaxsvd.svdvals(A), 0.9),
    "rayleigh_quotient": lambda A: linalg.rayleigh_quotient(A, A[0], A[:, 0]),
    "sqrtm": lambda A: linalg.sqrtm(covariance(A)),
    "subspaces": lambda A: linalg.subspaces(A, rank=3),
    "tls": lambda A: linalg.tls(A, A[:, 0]),
    "whitening": lambda A: linalg.whitening(covariance(A)),
    "whitening pca": lambda A: linalg.whitening(covariance(A), "pca"),
    "whitening cholesky": lambda A: linalg.whitening(covariance(A), "cholesky"),
}

NORMS = {
    "effective_rank": norms.effective_rank,
    "frobenius": norms.frobenius,
    "ky_fan": lambda A: norms.ky_fan(A, 2),
    "log_volume": norms.log_volume,
    "nuclear": norms.nuclear,
    "orthogonality": norms.orthogonality,
    "schatten": lambda A: norms.schatten(A, 3.0),
    "spectral": norms.spectral,
    "spectral_bound": norms.spectral_bound,
    "spectral_init": norms.spectral_init,
    "spectral_step": lambda A: norms.spectral_step(A, norms.spectral_init(A))[0],
    "stable_rank": norms.stable_rank,
    "tail_energy": lambda A: norms.tail_energy(A, 2),
    "spectral of a convolution": lambda A: norms.spectral(kernel(A)),
    "circular_norm": lambda A: circular_norm(kernel(A)),
    "convolution_bound": lambda A: convolution_bound(kernel(A), 4),
}

RULES = {
    "svd_pushforward": lambda A: rules.svd_pushforward(thin(A), A),
    "svd_pullback": lambda A: rules.svd_pullback(thin(A), thin(A)),
    "svdvals_pushforward": lambda A: rules.svdvals_pushforward(thin(A), A),
    "svdvals_pullback": lambda A: rules.svdvals_pullback(thin(A), thin(A).S),
    "spectral_pushforward": lambda A: rules.spectral_pushforward(thin(A), jnp.sqrt, A),
    "spectral_pullback": lambda A: rules.spectral_pullback(thin(A), jnp.sqrt, A),
    "eigh_pushforward": lambda A: rules.eigh_pushforward(jaxsvd.eigh(covariance(A)), covariance(A)),
    "eigh_pullback": lambda A: rules.eigh_pullback(
        jaxsvd.eigh(covariance(A)), jaxsvd.eigh(covariance(A))
    ),
    "full_numbers": lambda A: numbers(A).outer((A[:, :2], A[:2].T)),
    "truncated_pushforward": lambda A: rules.truncated_pushforward(
        A, leading(thin(A)), A, numbers(A)
    ),
    "truncated_pullback": lambda A: rules.truncated_pullback(
        leading(thin(A)), leading(thin(A)), numbers(A)
    ),
    "core_pushforward": lambda A: rules.core_pushforward(A, jaxsvd.core_svd(A, 2), A, numbers(A)),
    "core_pullback": lambda A: rules.core_pullback(
        jaxsvd.core_svd(A, 2), jaxsvd.core_svd(A, 2), numbers(A)
    ),
    "iterative_numbers": lambda A: rules.iterative_numbers(
        operators.Dense(A), thin(A), 2, tol=1e-3, max_iterations=9
    ).outer((A[:, :2], A[:2].T)),
    "fix_phases": lambda A: rules.fix_phases(thin(A)),
}

TRAINING = {
    "penalty": lambda A: regularizers.penalty(tree(A), norms.nuclear),
    "spectral_norm": lambda A: regularizers.spectral_norm(tree(A)),
    "spectral_normalize": lambda A: regularizers.spectral_normalize(
        tree(A), regularizers.spectral_normalize_init(tree(A))
    )[0],
    "projection_nuclear_ball": lambda A: optimizers.projection_nuclear_ball(tree(A)),
    "projection_rank": lambda A: optimizers.projection_rank(tree(A), 2),
    "projection_spectral_ball": lambda A: optimizers.projection_spectral_ball(tree(A)),
    "projection_stiefel": lambda A: optimizers.projection_stiefel(tree(A)),
    "scale_by_polar": updated(optimizers.scale_by_polar()),
    "clip_updates_spectral": updated(optimizers.clip_updates_spectral(1.0)),
    "keep_params_spectral": updated(optimizers.keep_params_spectral(1.0)),
    "prox_nuclear": updated(optimizers.prox_nuclear(0.1)),
    "scale_by_low_rank": updated(
        optimizers.scale_by_low_rank(2, optax.trace(0.9))
    ),  # the Adam of optax mixes dtypes
}

MODELS = {
    "pca": lambda A: pca.transform(pca.fit(A, 2), A),
    "pca back": lambda A: pca.inverse_transform(pca.fit(A, 2), A[:, :2]),
    "pca score": lambda A: pca.score(pca.fit(A, 2), A),
    "pca update": lambda A: pca.update(pca.fit(A, 2), A).components,
    "soft_impute": lambda A: completion.soft_impute(observed(A), 1.0, 3).to_dense(),
    "pursuit": robust.pursuit,
    "image": lambda A: image.reconstruct(image.compress(A, 2)),
}

GROUPS = {
    "jaxsvd": (jaxsvd, DECOMPOSED),
    "linalg": (linalg, LINALG),
    "norms": (norms, NORMS),
    "rules": (rules, RULES),
    "transforms": (optimizers, TRAINING),
    "regularizers": (regularizers, TRAINING),
}

# Functions of a user's function or of no array: what they multiply is multiplied by others here.
OTHERS = {
    "diagnose",  # NumPy and the functions above
    "value_and_grad_with_error",  # needs a user's function
    "report",  # returns a text
    "row_of",  # NumPy
    "spectra",  # NumPy
    "spectral_normalize_init",  # random vectors
}

FUNCTIONS = {
    f"{group}: {name}": function
    for group, functions in [
        ("svd", DECOMPOSED),
        ("linalg", LINALG),
        ("norms", NORMS),
        ("rules", RULES),
        ("training", TRAINING),
        ("models", MODELS),
    ]
    for name, function in functions.items()
}


def products(jaxpr):
    """Yield the name and the precision of every product of a jaxpr and of the jaxprs in it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            yield equation.primitive.name, equation.params["precision"]
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from products(inner)


def loss_of(function):
    """Return a real function of A that every inexact result of a function enters."""

    def loss(A):
        leaves = [x for x in jax.tree.leaves(function(A)) if jnp.issubdtype(x.dtype, jnp.inexact)]
        return sum((jnp.sum(jnp.real(x) ** 2) for x in leaves), jnp.zeros((), A.dtype))

    return loss


def found(function, A):
    return set(products(jax.make_jaxpr(function)(A).jaxpr))


# Loops until convergence that no rule replaces: JAX differentiates them forward only.
FORWARD = {"svd: streaming", "rules: iterative_numbers", "models: pursuit", "models: soft_impute"}


def derivative(name):
    loss = loss_of(FUNCTIONS[name])
    if name in FORWARD:
        return lambda A: jax.jvp(loss, (A,), (A,))[1]
    return jax.grad(loss)


def assert_highest(name, programs):
    low = {product for product in programs if product[1] != HIGHEST}
    assert not low or name in EARLY, f"{name}: {low}"


# Beyond the sizes of products that are written out as sums (16), and of those that one kernel
# takes: every product is one of `dot_general`.
MATRIX = np.random.default_rng(0).standard_normal((40, 36)).astype(np.float32)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_product_of_a_function_and_of_its_gradient(name):
    assert_highest(name, found(FUNCTIONS[name], MATRIX))
    assert_highest(name, found(derivative(name), MATRIX))


@pytest.mark.parametrize(
    "name", ["svd: svd", "svd: core_svd", "svd: spectral_map", "svd: truncated_svd"]
)
def test_every_product_of_a_hessian_and_of_a_batch(name):
    loss = loss_of(FUNCTIONS[name])
    along = lambda A: jax.jvp(jax.grad(loss), (A,), (A,))[1]  # noqa: E731
    assert_highest(name, found(along, MATRIX))
    assert_highest(name, found(jax.vmap(jax.grad(loss)), np.stack([MATRIX, 2 * MATRIX])))


def test_the_walk_sees_a_product_of_lower_precision():
    def hidden_in_a_loop(A):
        return lax.fori_loop(
            0, 2, lambda _, X: lax.cond(X[0, 0] > 0, lambda X: X @ X, jnp.sin, X), A
        )

    with pytest.raises(AssertionError, match="dot_general"):
        assert_highest("loop", found(hidden_in_a_loop, np.eye(3, dtype=np.float32)))


@pytest.mark.parametrize("group", GROUPS)
def test_every_public_function_is_in_the_tables(group):
    module, functions = GROUPS[group]
    public = {
        name
        for name in getattr(module, "__all__", None) or dir(module)
        if inspect.isfunction(getattr(module, name))
        and not name.startswith("_")
        and getattr(module, name).__module__.startswith(module.__name__)
    }
    missing = public - OTHERS - {name.split(" ")[0] for name in functions}
    assert not missing
