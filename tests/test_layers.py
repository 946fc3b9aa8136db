"""Layers made of factors: values, gradients, and life inside Equinox, Flax and Haiku.

Oracles: NumPy's SVD and eigh in double precision, JAX's convolution of the dense kernel, finite
differences.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxsvd import layers, operators
from tests.helpers import (
    FLOAT32,
    FLOAT64,
    assert_same_bits,
    assert_within,
    double,
    eps,
    finite_differences,
    gaussian,
)

KEY = jax.random.key(0)
BOTH = [FLOAT32, FLOAT64]


def best(A, rank):
    U, s, Vh = np.linalg.svd(double(A), full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vh[:rank]


# ------------------------------------------------------------------------------------ LowRankLinear


@pytest.mark.parametrize("dtype", BOTH)
def test_low_rank_is_the_truncated_svd(dtype):
    W, b, x = gaussian((7, 5), dtype), gaussian(5, dtype, 1), gaussian((2, 3, 7), dtype, 2)
    layer = layers.LowRankLinear.from_dense(W, 2, b)
    assert layer.left.shape == (7, 2)
    assert layer.right.dtype == dtype
    assert_within(layer.to_dense(), best(W, 2), 100)
    assert_within(layer.operator().to_dense(), best(W, 2), 100)
    wanted = double(x) @ best(W, 2) + double(b)
    assert_within(layer(x), wanted, 200)
    assert_within(jax.vmap(jax.vmap(layer))(x), wanted, 200)  # Equinox's way, a sample at a time
    # Balanced: both factors carry half of each singular value.
    assert_within(layer.left.T @ layer.left, layer.right @ layer.right.T, 100)


@pytest.mark.parametrize("dtype", BOTH)
def test_low_rank_truncates_without_the_product(dtype):
    layer = layers.LowRankLinear(gaussian((8, 4), dtype), gaussian((4, 6), dtype, 1))
    small = layer.truncate(2)
    assert small.rank == 2
    assert_within(small.to_dense(), best(double(layer.left) @ double(layer.right), 2), 200)
    assert_within(small.left.T @ small.left, small.right @ small.right.T, 200)


def test_frobenius_decay_is_that_of_the_product():
    layer = layers.LowRankLinear(jnp.asarray(gaussian((8, 3))), jnp.asarray(gaussian((3, 6))))
    value, gradient = jax.value_and_grad(layers.LowRankLinear.frobenius_decay)(layer)
    L, R = double(layer.left), double(layer.right)
    assert_within(value, np.sum((L @ R) ** 2), 20)
    assert_within(gradient.left, 2 * L @ R @ R.T, 50)
    assert_within(gradient.right, 2 * L.T @ L @ R, 50)


def test_initial_layers():
    spectral = layers.LowRankLinear.init(KEY, 60, 50, 20)
    s = np.linalg.svd(double(spectral.to_dense()), compute_uv=False)
    # Largest value of a Gaussian matrix of variance 1 / inputs: 1 + sqrt(outputs / inputs).
    assert s[0] == pytest.approx(1 + (50 / 60) ** 0.5, rel=0.1)
    assert_same_bits(spectral.bias, jnp.zeros(50))
    drawn = layers.LowRankLinear.init(KEY, 60, 50, 20, method="random", bias=False)
    assert drawn.bias is None
    assert np.var(double(drawn.to_dense())) == pytest.approx(1 / 60, rel=0.2)


def test_half_precision():
    W = jnp.asarray(gaussian((8, 6)), jnp.bfloat16)
    layer = layers.LowRankLinear.from_dense(W, 6)
    assert layer(jnp.ones((2, 8), jnp.bfloat16)).dtype == jnp.bfloat16
    assert np.max(np.abs(double(layer.to_dense()) - double(W))) < 4 * eps(jnp.bfloat16) * 3


# -------------------------------------------------------------------------------------- LowRankConv

CONVOLUTIONS = {
    "plain": {},
    "strided": {"strides": (2, 1), "padding": "SAME"},
    "valid": {"strides": 2, "padding": "VALID", "dilation": (1, 2)},
    "pairs": {"padding": ((2, 1), (0, 3)), "strides": (1, 2)},
    "circular": {"padding": "CIRCULAR"},
}


@pytest.mark.parametrize("scheme", ["channels", "separable"])
@pytest.mark.parametrize("given", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_of_full_rank_is_the_convolution(scheme, given):
    kernel, x = gaussian((3, 2, 4, 5)), gaussian((2, 8, 7, 4), seed=1)
    full = 5 if scheme == "channels" else 10
    layer = layers.LowRankConv.from_dense(kernel, full, scheme=scheme, **given)
    assert_within(layer.to_dense(), kernel, 200)
    op = operators.Convolution(kernel, (8, 7, 4), **given)
    wanted = op.to_dense() @ x.reshape(2, -1).T
    y = jax.jit(layer)(x)
    assert_within(y, np.asarray(wanted).T.reshape(y.shape), 200)
    assert_within(layer(x[0]), y[0], 200)


@pytest.mark.x32
def test_convolution_of_low_rank_is_nearest():
    kernel = gaussian((3, 3, 4, 6), np.float32)
    channels = layers.LowRankConv.from_dense(kernel, 2, jnp.ones(6, jnp.float32))
    assert_within(channels.to_dense(), best(kernel.reshape(36, 6), 2).reshape(kernel.shape), 100)
    separable = layers.LowRankConv.from_dense(kernel, 2, scheme="separable")
    matrix = kernel.transpose(0, 2, 1, 3).reshape(12, 18)
    wanted = best(matrix, 2).reshape(3, 4, 3, 6).transpose(0, 2, 1, 3)
    assert_within(separable.to_dense(), wanted, 100)
    x = gaussian((1, 5, 5, 4), np.float32, 1)
    dense = lax.conv_general_dilated(
        x, channels.to_dense(), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert_within(channels(x), double(dense) + 1, 200)


# --------------------------------------------------------------------------------- SVDLinear


@pytest.mark.parametrize("dtype", BOTH)
def test_svd_linear(dtype):
    W, x = gaussian((7, 5), dtype), gaussian((3, 7), dtype, 1)
    layer = layers.SVDLinear.from_dense(W, 3)
    assert_within(layer.to_dense(), best(W, 3), 100)
    assert_within(layer(x), double(x) @ best(W, 3), 200)
    assert_within(layers.SVDLinear.from_dense(W).to_dense(), W, 100)


@pytest.mark.filterwarnings("ignore")
def test_svd_linear_stays_orthogonal_in_training():
    params = {
        "first": layers.SVDLinear.init(KEY, 6, 5, 4, dtype=jnp.float32),
        "last": layers.LowRankLinear.init(KEY, 5, 2, 1, dtype=jnp.float32),
    }
    x, y = gaussian((16, 6), np.float32), gaussian((16, 2), np.float32, 1)

    def loss(params):
        return jnp.mean((params["last"](jnp.tanh(params["first"](x))) - y) ** 2)

    def run(optimizer, params):
        @jax.jit
        def step(params, state):
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

        state, values = optimizer.init(params), []
        for _ in range(30):
            params, state, value = step(params, state)
            values.append(float(value))
        return params, values

    def off(layer):
        U, V = double(layer.U), double(layer.Vh).T
        return max(np.abs(Q.T @ Q - np.eye(4)).max() for Q in (U, V))

    with jax.numpy_dtype_promotion("standard"):
        free, _ = run(optax.adam(0.05), params)
        kept, values = run(optax.chain(optax.adam(0.05), layers.keep_orthogonal()), params)
    assert off(free["first"]) > 1e-2
    assert off(kept["first"]) < 40 * eps(np.float32)
    assert values[-1] < 0.6 * values[0]
    with pytest.raises(ValueError, match="keep_orthogonal: `params` must be given"):
        layers.keep_orthogonal().update(params, None)


# ----------------------------------------------------------------------------- SpectralLinear


@pytest.mark.parametrize("dtype", BOTH)
def test_spectral_linear_is_capped(dtype):
    W, x = gaussian((6, 4), dtype), gaussian((3, 6), dtype, 1)
    layer = layers.SpectralLinear(W, None, 0.7)
    wanted = double(W) * 0.7 / np.linalg.norm(double(W), 2)
    assert_within(layer.to_dense(), wanted, 50)
    assert_within(layer(x), double(x) @ wanted, 100)
    small = layers.SpectralLinear(W, None, 100.0)
    assert_same_bits(small.to_dense(), jnp.asarray(W))
    state, step = layer.init_state(), jax.jit(lambda x, state: layer(x, state=state))
    for _ in range(30):
        y, state = step(x, state)
    assert_within(y, double(x) @ wanted, 1e5 if dtype == np.float64 else 100)


def test_spectral_linear_gradient():
    W, x, G = gaussian((5, 4)), jnp.asarray(gaussian((3, 5), seed=1)), gaussian((3, 4), seed=2)

    def loss(W):
        return jnp.sum(G * layers.SpectralLinear(W, None, 0.7)(x))

    assert_within(jax.grad(loss)(jnp.asarray(W)), finite_differences(loss, W), 1e8)


# ------------------------------------------------------------------------------------------- Whiten


def zca(x, eps, mean=None, cov=None):
    mean = x.mean(0) if mean is None else mean
    cov = (x - mean).T @ (x - mean) / len(x) if cov is None else cov
    w, Q = np.linalg.eigh(cov + eps * np.eye(len(cov)))
    return (x - mean) @ (Q / np.sqrt(w)) @ Q.T, mean, cov


@pytest.mark.parametrize("dtype", BOTH)
def test_whiten_whitens(dtype):
    x = gaussian((40, 4), dtype) @ gaussian((4, 4), dtype, 1) + 3
    layer = layers.Whiten.init(4, momentum=0.8, dtype=dtype)
    start = layer.init_state(dtype)
    y, state = jax.jit(layer)(x, start)
    wanted, mean, cov = zca(double(x), 1e-5)
    assert_within(y, wanted, 5000)
    assert np.abs(np.cov(double(y).T, bias=True) - np.eye(4)).max() < 1e-3
    assert_within(state.mean, 0.2 * mean, 20)
    assert_within(state.cov[0], 0.8 * np.eye(4) + 0.2 * cov, 20)
    calm, same = layer(x, state, training=False)
    assert_same_bits(same, state)
    wanted, *_ = zca(double(x), 1e-5, double(state.mean), double(state.cov[0]))
    assert_within(calm, wanted, 500)


def test_whiten_in_groups_and_with_more_axes():
    x = gaussian((3, 10, 6))
    layer = layers.Whiten.init(6, group=2)
    layer = dataclasses.replace(layer, scale=jnp.arange(6.0), shift=jnp.ones(6))
    y, _ = layer(x, layer.init_state())
    flat = x.reshape(30, 6)
    parts = [zca(flat[:, i : i + 2], 1e-5)[0] for i in (0, 2, 4)]
    wanted = np.concatenate(parts, axis=1) * np.arange(6.0) + 1
    assert_within(y, wanted.reshape(x.shape), 200)


def test_whiten_gradient_survives_equal_eigenvalues():
    """All covariances of this batch are the identity, where eigh's own rule divides by zero."""
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float64)
    layer = layers.Whiten.init(3)
    G = jnp.asarray(gaussian((4, 3)))

    state = layer.init_state()

    def loss(x, state):
        return jnp.sum(G * layer(x, state)[0])

    gradient = jax.grad(loss)(jnp.asarray(corners), state)
    assert_within(gradient, finite_differences(lambda x: loss(x, state), corners), 1e7)
    by_state = jax.grad(loss, argnums=1)(jnp.asarray(corners), state)
    assert_same_bits(by_state, jax.tree.map(jnp.zeros_like, by_state))
    frozen = jax.grad(lambda s: jnp.sum(G * layer(corners, s, training=False)[0]))
    assert_same_bits(frozen(state), by_state)


# ---------------------------------------------------------------------------- frameworks

X, Y = gaussian((32, 6), np.float32), gaussian((32, 3), np.float32, 1)


def error(output):
    return jnp.mean((output - Y) ** 2)


@pytest.fixture
def _standard_promotion():
    """The frameworks and optax add integers to floats, and biases to batches."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def all_layers(key):
    """One of each kind that maps (..., 6) to (..., 6)."""
    return [
        layers.LowRankLinear.init(key, 6, 6, 3, dtype=jnp.float32),
        layers.SVDLinear.init(key, 6, 6, dtype=jnp.float32),
        layers.SpectralLinear.init(key, 6, 6, dtype=jnp.float32),
    ]


def by_path(tree):
    named, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in named}


def through_safetensors(tree, path):
    """Write the leaves of a pytree by their paths, and read them back into its structure."""
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file(by_path(tree), path)
    found = numpy.load_file(path)
    leaves = [jnp.asarray(found[name]) for name in by_path(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


@pytest.mark.usefixtures("_standard_promotion")
def test_in_equinox(tmp_path):
    eqx = pytest.importorskip("equinox")

    class Model(eqx.Module):
        hidden: list
        whiten: layers.Whiten
        head: eqx.nn.Linear

        def __call__(self, x, state):
            for layer in self.hidden:
                x = jnp.tanh(jax.vmap(layer)(x))
            x, state = self.whiten(x, state)
            return jax.vmap(self.head)(x), state

    head = eqx.nn.Linear(6, 3, key=KEY, dtype=jnp.float32)
    model = Model(all_layers(KEY), layers.Whiten.init(6, dtype=jnp.float32), head)
    optimizer = optax.chain(optax.adamw(1e-2), layers.keep_orthogonal())
    state = model.whiten.init_state(jnp.float32)

    @eqx.filter_jit
    def step(model, state, moments):
        def loss(model):
            output, following = model(X, state)
            return error(output), following

        (value, state_), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(model)
        arrays = eqx.filter(model, eqx.is_inexact_array)
        updates, moments = optimizer.update(gradient, moments, arrays)
        return eqx.apply_updates(model, updates), state_, moments, value

    moments = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    values = []
    for _ in range(3):
        model, state, moments, value = step(model, state, moments)
        values.append(float(value))
    assert values[2] < values[1] < values[0]
    assert_within(model.hidden[1].U.T @ model.hidden[1].U, np.eye(6), 20)
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", (model, state))
    found = eqx.tree_deserialise_leaves(tmp_path / "model.eqx", (model, state))
    assert_same_bits(found[0](X, found[1])[0], model(X, state)[0])
    arrays, rest = eqx.partition(model, eqx.is_array)
    again = eqx.combine(through_safetensors(arrays, tmp_path / "model.safetensors"), rest)
    assert_same_bits(again(X, state)[0], model(X, state)[0])


def train(params, apply):
    """Return the parameters after three jitted steps, whose losses must fall."""
    optimizer = optax.chain(optax.adamw(1e-2), layers.keep_orthogonal())

    @jax.jit
    def step(params, moments):
        value, gradient = jax.value_and_grad(lambda params: error(apply(params, X)))(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, value

    moments, values = optimizer.init(params), []
    for _ in range(3):
        params, moments, value = step(params, moments)
        values.append(float(value))
    assert values[2] < values[1] < values[0]
    return params


@pytest.mark.usefixtures("_standard_promotion")
@pytest.mark.filterwarnings("ignore")
def test_in_flax_linen(tmp_path):
    nn = pytest.importorskip("flax.linen")
    serialization = pytest.importorskip("flax.serialization")

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(3):
                layer = self.param(f"layer{i}", lambda key, i=i: all_layers(key)[i])
                x = jnp.tanh(layer(x))
            return nn.Dense(3)(x)

    model = Model()
    params = train(model.init(KEY, X), model.apply)
    assert_within(params["params"]["layer1"].U.T @ params["params"]["layer1"].U, np.eye(6), 20)
    leaves, structure = jax.tree.flatten(params)
    found = serialization.from_bytes(leaves, serialization.to_bytes(leaves))
    assert_same_bits(model.apply(structure.unflatten(found), X), model.apply(params, X))
    found = through_safetensors(params, tmp_path / "model.safetensors")
    assert_same_bits(model.apply(found, X), model.apply(params, X))


@pytest.mark.usefixtures("_standard_promotion")
@pytest.mark.filterwarnings("ignore")
def test_in_flax_nnx(tmp_path):
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            for i, layer in enumerate(all_layers(rngs.params())):
                setattr(self, f"layer{i}", nnx.Param(layer))
            self.head = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            for i in range(3):
                x = jnp.tanh(getattr(self, f"layer{i}").get_value()(x))
            return self.head(x)

    graph, params = nnx.split(Model(nnx.Rngs(0)), nnx.Param)
    params = train(params, lambda params, x: nnx.merge(graph, params)(x))
    model = nnx.merge(graph, params)
    U = model.layer1.get_value().U
    assert_within(U.T @ U, np.eye(6), 20)
    found = nnx.merge(graph, through_safetensors(params, tmp_path / "model.safetensors"))
    assert_same_bits(nnx.jit(lambda model: model(X))(found), model(X))


@pytest.mark.usefixtures("_standard_promotion")
@pytest.mark.filterwarnings("ignore")
def test_in_haiku(tmp_path):
    hk = pytest.importorskip("haiku")

    def forward(x):
        # Haiku holds arrays: the layer is made of them where it is called.
        for i, start in enumerate(all_layers(KEY)):
            leaves, structure = jax.tree.flatten(start)
            held = [
                hk.get_parameter(
                    f"layer{i}_{j}", leaf.shape, leaf.dtype, lambda *_, leaf=leaf: leaf
                )
                for j, leaf in enumerate(leaves)
            ]
            x = jnp.tanh(structure.unflatten(held)(x))
        return hk.Linear(3)(x)

    model = hk.without_apply_rng(hk.transform(forward))
    params = train(model.init(KEY, X), model.apply)
    found = through_safetensors(params, tmp_path / "model.safetensors")
    assert_same_bits(model.apply(found, X), model.apply(params, X))


# ---------------------------------------------------------------------------------- bad input

W = np.ones((4, 3))
LINEAR, STATE = layers.LowRankLinear.from_dense(W, 1), layers.Whiten.init(3).init_state()
BAD = {
    "rank": (
        lambda: layers.LowRankLinear.from_dense(W, 4),
        "LowRankLinear.from_dense: `rank` must satisfy 1 <= rank <= 3, got 4",
    ),
    "stack": (lambda: layers.LowRankLinear.from_dense(W[None], 1), "`kernel` must have shape"),
    "factors": (lambda: layers.LowRankLinear(W, W), r"got \(4, 3\), \(4, 3\)"),
    "bias": (lambda: layers.SVDLinear.from_dense(W, 1, W), r"`bias` must have shape \(3,\)"),
    "input": (lambda: LINEAR(np.ones((2, 3))), r"`x` must have shape \(\.\.\., 4\), got \(2, 3\)"),
    "truncate": (lambda: LINEAR.truncate(2), "1 <= rank <= 1, got 2"),
    "method": (lambda: layers.LowRankLinear.init(KEY, 4, 3, 1, method="x"), "one of 'spectral'"),
    "cap": (lambda: layers.SpectralLinear(W, None, 0.0), "`max_norm` must be a number > 0"),
    "group": (lambda: layers.Whiten.init(4, group=3), "`group` must divide 4 features, got 3"),
    "momentum": (lambda: layers.Whiten.init(4, momentum=1.0), "0 <= momentum < 1, got 1.0"),
    "state": (lambda: layers.Whiten.init(3)(W, None), "`state` must come from init_state"),
    "statistics": (lambda: layers.Whiten.init(4)(W.T, STATE), r"got \(\(3,\), \(1, 3, 3\)\)"),
    "sample": (lambda: layers.Whiten.init(3)(W[:1], STATE), "two samples in training, got 1"),
    "kernel": (lambda: layers.LowRankConv.from_dense(W, 1), "one to three spatial axes"),
    "scheme": (
        lambda: layers.LowRankConv.from_dense(np.ones((3, 2, 2)), 1, scheme="separable"),
        "two spatial axes",
    ),
    "padding": (
        lambda: layers.LowRankConv.from_dense(np.ones((3, 3, 2, 2)), 1, padding="x"),
        "`padding` must be one of 'SAME'",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
