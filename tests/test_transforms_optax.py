"""Projections and gradient transformations in optax's conventions.

Oracles: NumPy's SVD in double precision with the known formula on the singular values; random
feasible points, none of which may be nearer; finite differences of those formulas.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxsvd import transforms
from tests.helpers import (
    COMPLEX128,
    FLOAT32,
    adjoint,
    assert_same_bits,
    assert_within,
    double,
    eps,
    gaussian,
    pairing,
    with_values,
)


@pytest.fixture
def _standard_promotion():
    """optax's Adam adds integers to floats, as strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


ADAM = pytest.mark.usefixtures("_standard_promotion")

# ------------------------------------------------------------------------------------ projections


def on_simplex(s, radius):
    """Values lowered to the sum ``radius`` by bisection on the threshold."""
    if s.sum() <= radius:
        return s
    low, high = 0.0, s.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(s - middle, 0).sum() > radius else (low, middle)
    return np.maximum(s - high, 0)


PROJECTIONS = {
    "spectral": (
        lambda a: transforms.projection_spectral_ball(a, 1.5),
        lambda s: np.minimum(s, 1.5),
    ),
    "nuclear": (
        lambda a: transforms.projection_nuclear_ball(a, 2.5),
        lambda s: on_simplex(s, 2.5),
    ),
    "rank": (
        lambda a: transforms.projection_rank(a, 2),
        lambda s: np.where(np.arange(s.size) < 2, s, 0),
    ),
    "stiefel": (transforms.projection_stiefel, np.ones_like),
}

# Distinct values; a tie on either side of the bounds; a zero; inside the balls.
SPECTRA = [(3, 2, 1.2, 0.5), (2, 2, 1, 1), (4, 2.2, 1, 0), (1.2, 0.8, 0.3, 0.1)]


def stack(dtype):
    return np.stack([with_values(s, 5, 4, dtype, i) for i, s in enumerate(SPECTRA)])


def oracle(A, function):
    U, s, Vh = np.linalg.svd(double(A), full_matrices=False)
    return (U * function(s)) @ Vh


@pytest.mark.parametrize("dtype", [FLOAT32, COMPLEX128])
@pytest.mark.parametrize("name", PROJECTIONS)
def test_projections(name, dtype):
    project, function = PROJECTIONS[name]
    A = stack(dtype)
    project = jax.jit(jax.vmap(project))
    projected = project(jnp.asarray(A))
    again = project(projected)
    assert projected.dtype == dtype
    assert_within(again, projected, 30)  # idempotent
    rng = np.random.default_rng(0)
    for a, p, s in zip(A, projected, SPECTRA, strict=True):
        p = double(p)
        if name != "stiefel" or min(s) > 0:  # the polar factor of a deficient matrix is not unique
            assert_within(p.astype(dtype), oracle(a, function), 60)
        # No feasible point is nearer.
        for seed in range(20):
            near = p + gaussian(p.shape, dtype, seed) * 10.0 ** rng.uniform(-3, 0)
            feasible = oracle(near, function)
            assert np.linalg.norm(a - p) <= np.linalg.norm(a - feasible) * (1 + 50 * eps(dtype))
        values = np.linalg.svd(p, compute_uv=False)
        np.testing.assert_allclose(values, function(values), atol=30 * eps(dtype))


def slopes(name, A, E, h=1e-6):
    function = PROJECTIONS[name][1]
    return (oracle(A + h * E, function) - oracle(A - h * E, function)) / (2 * h)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_derivatives_of_projections(name):
    """Off the kinks, at ties too: the derivatives are those of the map as it is."""
    project = PROJECTIONS[name][0]
    A, E = stack(np.float64)[[0, 1, 3]], gaussian((3, 5, 4), seed=7)
    weights = gaussian((5, 4), seed=8)

    def both(a, e):
        slope = jax.jvp(project, (a,), (e,))[1]
        return slope, jax.vjp(project, a)[1](jnp.asarray(weights))[0]

    forward, reverse = jax.jit(jax.vmap(both))(jnp.asarray(A), jnp.asarray(E))
    for a, e, slope, gradient in zip(A, E, forward, reverse, strict=True):
        np.testing.assert_allclose(slope, slopes(name, a, e), atol=1e-7)
        np.testing.assert_allclose(pairing(gradient, e), pairing(slope, weights), atol=1e-12)


def test_second_derivative_of_the_nuclear_projection_at_a_tie():
    project = PROJECTIONS["nuclear"][0]
    A, E = with_values((2, 2, 0.4), 4, 3), gaussian((4, 3), seed=3)
    W = jnp.asarray(gaussian((4, 3), seed=4))
    loss = lambda a: jnp.sum(W * project(a))  # noqa: E731
    product = jax.jit(lambda a, e: jax.jvp(jax.grad(loss), (a,), (e,))[1])(A, E)
    # The oracle's curvature along E, in fourth order.
    h = 1e-3
    f = [np.sum(W * oracle(A + i * h * E, lambda s: on_simplex(s, 2.5))) for i in range(-2, 3)]
    curvature = np.dot([-1, 16, -30, 16, -1], f) / (12 * h**2)
    np.testing.assert_allclose(pairing(product, E), curvature, rtol=1e-6)


def test_the_radius_is_differentiated():
    A = jnp.asarray(with_values((3, 2, 0.5), 4, 3))
    slope = jax.jit(jax.jacfwd(lambda r: transforms.projection_nuclear_ball(A, r)))(2.5)
    U, _, Vh = np.linalg.svd(double(A), full_matrices=False)
    np.testing.assert_allclose(slope, (U[:, :2] @ Vh[:2]) / 2, atol=1e-12)


def test_projections_of_pytrees():
    tree = {"conv": jnp.asarray(gaussian((2, 2, 3, 4))), "w": 5 * jnp.eye(3), "b": jnp.ones(3)}
    projected = transforms.projection_spectral_ball(tree, 1.0, where="w|conv", axes=((0, 1, 2), 3))
    assert_same_bits(projected["b"], tree["b"])
    assert_within(projected["w"], np.eye(3), 10)
    wanted = oracle(tree["conv"].reshape(12, 4), lambda s: np.minimum(s, 1))
    assert_within(projected["conv"].reshape(12, 4), wanted, 50)


# -------------------------------------------------------------------------------- transformations

P = {"w": gaussian((6, 4), seed=1), "v": gaussian((3, 5), seed=2), "b": np.ones(4)}
G = {"w": gaussian((6, 4), seed=3), "v": gaussian((3, 5), seed=4), "b": np.ones(4)}

MOMENTUM = optax.trace(0.9)

LINKS = {
    "keep_params_spectral": lambda: transforms.keep_params_spectral(1.0),
    "prox_nuclear": lambda: transforms.prox_nuclear(0.3),
    "prox_nuclear schedule": lambda: transforms.prox_nuclear(
        lambda count: 0.1 / (1 + count.astype(jnp.float32))
    ),
    "clip_updates_spectral": lambda: transforms.clip_updates_spectral(1.0),
    "scale_by_polar": transforms.scale_by_polar,
    "scale_by_low_rank": lambda: transforms.scale_by_low_rank(2, MOMENTUM, 2),
    "scale_by_low_rank warm": lambda: transforms.scale_by_low_rank(
        2, MOMENTUM, 2, "warm", residual=0.5
    ),
}


def trees(dtype=np.float64):
    return tuple(jax.tree.map(lambda x: jnp.asarray(x.astype(dtype)), tree) for tree in (P, G))


def types(state):
    return [(jnp.shape(x), jnp.asarray(x).dtype) for x in jax.tree.leaves(state)]


@pytest.mark.parametrize("name", LINKS)
def test_as_optax_wants_it(name):
    """Jit equals no jax.jit, state types are stable, init takes shapes, float32 stays float32."""
    params, grads = ({k: tree[k] for k in "wb"} for tree in trees(np.float32))
    link = LINKS[name]()
    state = link.init(jax.eval_shape(lambda: params))
    assert_same_bits(state, link.init(params))
    jitted = jax.jit(link.update)
    following = state
    for _ in range(3):
        last = following
        updates, following = jitted(grads, last, params)
        assert types(following) == types(state)
        assert jax.tree.structure(following) == jax.tree.structure(state)
        assert types(updates) == types(grads)
    plain = link.update(grads, last, params)
    for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves((updates, following)), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.parametrize("name", LINKS)
def test_wrapped_by_optax(name):
    """masked, MultiSteps: the mask hides a leaf, every second step acts."""
    params, grads = trees()
    mask = {"w": True, "v": False, "b": False}
    masked = optax.masked(LINKS[name](), mask)
    updates, _ = jax.jit(masked.update)(grads, masked.init(params), params)
    assert_same_bits({k: updates[k] for k in "vb"}, {k: grads[k] for k in "vb"})
    alone = LINKS[name]()
    only = {"w": params["w"]}
    wanted, _ = jax.jit(alone.update)({"w": grads["w"]}, alone.init(only), only)
    np.testing.assert_allclose(updates["w"], wanted["w"], atol=1e-9)


@ADAM
def test_multi_steps():
    params, grads = trees(np.float32)
    link = transforms.scale_by_low_rank(2, MOMENTUM, refresh="warm")
    steps = optax.MultiSteps(optax.chain(link, transforms.keep_params_spectral(1.0)), 2)
    update = jax.jit(steps.update)
    state = steps.init(params)
    first, state = update(grads, state, params)
    assert not np.any(first["w"])
    second, state = update(grads, state, params)
    moved = optax.apply_updates(params, second)
    assert np.linalg.svd(double(moved["w"]), compute_uv=False)[0] <= 1 + 1e-6


@ADAM
@pytest.mark.parametrize(
    ("build", "argument"),
    [(transforms.keep_params_spectral, "max_norm"), (transforms.prox_nuclear, "threshold")],
)
def test_hyperparameters_are_injected(build, argument):
    params, grads = trees()
    schedule = optax.linear_schedule(1.0, 0.5, 2)
    link = optax.inject_hyperparams(build)(**{argument: schedule})
    state = link.init(params)
    for value in (1.0, 0.75, 0.5):
        updates, state = link.update(grads, state, params)
        wanted, _ = build(value).update(grads, build(value).init(params), params)
        np.testing.assert_allclose(updates["w"], wanted["w"], atol=1e-12)


@pytest.mark.parametrize("name", LINKS)
def test_on_an_explicit_mesh(name):
    """Eight devices: the numbers of one device, in the sharding of the leaves."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    tree = {"w": gaussian((16, 4)), "b": np.ones(8)}
    specs = {"w": PartitionSpec("x"), "b": PartitionSpec("x")}
    whole = jax.tree.map(jnp.asarray, tree)
    link = LINKS[name]()
    wanted, _ = jax.jit(link.update)(whole, link.init(whole), whole)
    with jax.set_mesh(mesh):
        placed = {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in whole.items()}
        updates, state = jax.jit(link.update)(placed, link.init(placed), placed)
        for k, update in updates.items():
            np.testing.assert_allclose(np.asarray(update), wanted[k], atol=1e-9)
            assert jax.typeof(update).sharding.spec == jax.typeof(placed[k]).sharding.spec
        assert types(state) == types(link.init(placed))


# ----------------------------------------------------------------------------------- what they do


def test_prox_nuclear_solves_its_problem():
    """Proximal gradient descent for 1/2 |X - Y|^2 + t |X|_* has soft thresholding as its end."""
    Y = with_values((3, 1, 0.4), 5, 4)
    t, rate = 0.6, 0.25
    optimizer = optax.chain(optax.sgd(rate), transforms.prox_nuclear(rate * t))
    update = jax.jit(optimizer.update)
    X = jnp.zeros((5, 4))
    state = optimizer.init(X)
    for _ in range(80):
        updates, state = update(X - Y, state, X)
        X = X + updates
    wanted = oracle(Y, lambda s: np.maximum(s - t, 0))
    np.testing.assert_allclose(X, wanted, atol=1e-9)
    assert np.linalg.matrix_rank(X, tol=1e-12) == 2


def test_polar_of_no_gradient_is_no_update():
    polar = transforms.scale_by_polar()
    A = jnp.asarray(with_values((2, 1e-3), 5, 4))
    updates, _ = polar.update({"zero": jnp.zeros((3, 2)), "two": A}, optax.EmptyState())
    assert not np.any(updates["zero"])
    wanted = oracle(A, lambda s: np.where(s > 1e-10, 1, 0))
    assert_within(updates["two"], wanted, 1e4)


@ADAM
def test_muon_approaches_the_polar_factor():
    """As its Newton-Schulz steps grow; with coefficients that converge, to rounding."""
    A = jnp.asarray(with_values((1, 0.7, 0.4, 0.2), 6, 4))
    exact, _ = transforms.scale_by_polar().update(A, optax.EmptyState())
    errors = []
    for steps in (1, 2, 4, 8):
        muon = optax.contrib.scale_by_muon((1.875, -1.25, 0.375), steps, beta=0.0, nesterov=False)
        direction, _ = muon.update(A, muon.init(A), A)
        errors.append(float(jnp.linalg.norm(direction - exact)))
    assert np.all(np.diff(errors) < 0)
    assert errors[-1] < 1e-12
    standard = optax.contrib.scale_by_muon(beta=0.0, nesterov=False)
    direction, _ = standard.update(A, standard.init(A), A)
    assert jnp.linalg.norm(direction - exact) < 0.35 * jnp.linalg.norm(exact)


# -------------------------------------------------------------------------------------- low rank


def train(optimizer, steps=60, shape=(24, 16), batch=64, seed=0):
    """Least squares with a low-rank target and noisy gradients; returns the final loss."""
    rng = np.random.default_rng(seed)
    target = with_values(np.linspace(3, 1, 4), *shape, seed=seed)
    X = jnp.asarray(rng.standard_normal((steps, batch, shape[0])))
    W = jnp.zeros(shape)

    def loss(W, x):
        return jnp.mean(jnp.square(x @ (W - target)))

    @jax.jit
    def run(W, state, X):
        def body(carry, x):
            W, state = carry
            updates, state = optimizer.update(jax.grad(loss)(W, x), state, W)
            return (W + updates, state), None

        return jax.lax.scan(body, (W, state), X)[0]

    W, state = run(W, optimizer.init(W), X)
    return float(jnp.mean(jnp.square(W - target))), state


@ADAM
def test_full_rank_is_the_base_optimizer():
    params, grads = ({k: tree[k] for k in "wb"} for tree in trees())
    low, base = transforms.scale_by_low_rank(4), optax.scale_by_adam()  # 4 is the shorter side
    state, wanted_state = low.init(params), base.init(params)
    for _ in range(3):
        updates, state = low.update(grads, state, params)
        wanted, wanted_state = base.update(grads, wanted_state, params)
        assert_within(updates, wanted, 10)
    assert state.basis == {}


def test_state_is_small():
    W = jax.ShapeDtypeStruct((2048, 1024), jnp.float32)
    state = jax.eval_shape(transforms.scale_by_low_rank(16).init, W)
    assert {x.shape for x in jax.tree.leaves(state)} == {(), (1024, 16), (16, 2048)}


@pytest.mark.parametrize("refresh", ["randomized", "warm"])
def test_basis_is_the_leading_subspace(refresh):
    A = with_values((5, 4, 3, 0.01, 0.01), 8, 6)
    grads = {"tall": jnp.asarray(A), "wide": jnp.asarray(A.T), "heads": jnp.asarray(A)[None]}
    link = transforms.scale_by_low_rank(3, optax.identity(), 1, refresh, axes=((1,), (2,)))
    state = link.init(grads)
    update = jax.jit(link.update)
    for _ in range(3):
        updates, state = update(grads, state)
    wanted = oracle(A, lambda s: np.where(np.arange(s.size) < 3, s, 0))
    for name, want in [("tall", wanted), ("wide", wanted.T), ("heads", wanted[None])]:
        np.testing.assert_allclose(updates[name], want, atol=1e-4)
    for basis in state.basis.values():
        gram = adjoint(double(basis)) @ double(basis)
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-12)


def test_moments_follow_the_basis():
    """Momentum within a subspace that merely gets another basis is momentum without projection."""
    Q = np.linalg.qr(gaussian((6, 3)))[0]
    base = optax.trace(0.9)
    rotated = transforms.scale_by_low_rank(3, base, 1)
    frozen = transforms.scale_by_low_rank(3, base, 1, rotate_moments=False)
    states = [link.init(jnp.zeros((6, 8))) for link in (rotated, frozen, base)]
    updates = [jax.jit(link.update) for link in (rotated, frozen, base)]
    for step in range(4):
        G = jnp.asarray(Q @ gaussian((3, 8), seed=step))
        results = [update(G, state) for update, state in zip(updates, states, strict=True)]
        states = [state for _, state in results]
    np.testing.assert_allclose(results[0][0], results[2][0], atol=1e-10)
    assert np.max(np.abs(results[1][0] - results[2][0])) > 0.1


def test_squares_follow_the_basis_as_squares():
    """A permutation of the basis permutes them; a new direction starts at the mean."""
    from jaxsvd.transforms.low_rank import _rotate

    R = jnp.eye(3)[jnp.array([2, 0, 1])]
    V = jnp.asarray(np.abs(gaussian((3, 4))))
    assert_within(_rotate("nu", V, R), V[jnp.array([2, 0, 1])], 1)
    new = jnp.diag(jnp.array([1.0, 1.0, 0.0]))
    assert_within(_rotate("nu", V, new)[2], jnp.mean(V, axis=0), 4)
    assert_within(_rotate("mu", -V, new)[2], 0 * V[0], 1)


def test_residual_of_sgd_is_sgd():
    params, grads = trees()
    link = transforms.scale_by_low_rank(1, optax.sgd(0.1), residual=1.0)
    updates, _ = jax.jit(link.update)(grads, link.init(params))
    for name in P:
        np.testing.assert_allclose(updates[name], -0.1 * grads[name], atol=1e-14)


@ADAM
def test_no_worse_than_galore():
    """The same rank, base, learning rate and number of steps between refreshes."""
    rank, every, rate = 4, 10, 0.05
    theirs, _ = train(optax.contrib.galore(rate, rank, every))
    for options in (
        {"refresh": "randomized"},
        {"refresh": "warm"},
        {"refresh": "randomized", "residual": 1.0},
    ):
        link = transforms.scale_by_low_rank(rank, None, every, **options)
        ours, _ = train(optax.chain(link, optax.scale(-rate)))
        assert ours <= theirs * 1.001, (options, ours, theirs)


# -------------------------------------------------------------------------------------- bad input

W = jnp.ones((4, 3))
LOW = transforms.scale_by_low_rank

REFUSED = [
    (
        ValueError,
        "projection_spectral_ball: `max_norm` must be a number > 0, got float -1",
        lambda: transforms.projection_spectral_ball(W, -1.0),
    ),
    (
        ValueError,
        "projection_nuclear_ball: `radius` must be a number > 0, got int 0",
        lambda: transforms.projection_nuclear_ball(W, 0),
    ),
    (
        ValueError,
        "projection_rank: `rank` must satisfy 1 <=",
        lambda: transforms.projection_rank(W, 0),
    ),
    (
        ValueError,
        "projection_stiefel: `where` must match a path, got 'x'; the paths are a, b",
        lambda: transforms.projection_stiefel({"a": W, "b": W}, where="x"),
    ),
    (
        ValueError,
        "keep_params_spectral: `max_norm` must be a number > 0",
        lambda: transforms.keep_params_spectral(0.0),
    ),
    (
        ValueError,
        "keep_params_spectral: `params` must be given to update, got None",
        lambda: transforms.keep_params_spectral(1.0).update(W, optax.EmptyState()),
    ),
    (
        ValueError,
        "prox_nuclear: `threshold` must be a number > 0",
        lambda: transforms.prox_nuclear(-0.1),
    ),
    (
        TypeError,
        "clip_updates_spectral: `max_norm` must be a positive number, got str",
        lambda: transforms.clip_updates_spectral("1"),
    ),
    (
        ValueError,
        "scale_by_polar: `params` must hold a matrix, got none of two axes; the paths are b",
        lambda: transforms.scale_by_polar().init({"b": W[0]}),
    ),
    (
        TypeError,
        "scale_by_polar: `where` must select floating-point or complex leaves, got 'n'",
        lambda: transforms.scale_by_polar(where="n").init({"n": jnp.ones((2, 2), int)}),
    ),
    (ValueError, "scale_by_low_rank: `rank` must satisfy 1 <=", lambda: LOW(0)),
    (ValueError, "scale_by_low_rank: `refresh_every` must", lambda: LOW(2, refresh_every=0)),
    (ValueError, "scale_by_low_rank: `refresh` must be one of", lambda: LOW(2, refresh="svd")),
    (ValueError, "scale_by_low_rank: `residual` must be", lambda: LOW(2, residual=-1.0)),
    (TypeError, "scale_by_low_rank: `base` must be a Gradient", lambda: LOW(2, "adam")),
    (
        ValueError,
        "scale_by_low_rank: `state` must come from init for the same leaves.*differs at a, b",
        lambda: LOW(2).update({"b": W}, LOW(2).init({"a": W})),
    ),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_bad_input(number):
    error, message, call = REFUSED[number]
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
