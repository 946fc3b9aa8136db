"""Penalties, normalisation and reports over pytrees, and which leaves count as matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsvd
from jaxsvd import _leaves, norms, regularizers
from tests.helpers import assert_same_bits, assert_within, double, gaussian, with_values

CONV = ((0, 1, 2), 3)


def params(dtype=np.float64):
    return {
        "conv": {"kernel": jnp.asarray(gaussian((2, 2, 3, 5), dtype, 1)), "bias": jnp.ones(5)},
        "dense": {"kernel": jnp.asarray(gaussian((4, 3), dtype, 2)), "bias": jnp.ones(3)},
        "steps": jnp.arange(6).reshape(2, 3),
    }


def values(matrix) -> np.ndarray:
    return np.linalg.svd(double(matrix), compute_uv=False)


# ------------------------------------------------------------------------------------- selecting


@pytest.mark.parametrize(
    ("where", "axes", "wanted"),
    [
        (None, None, ["dense/kernel"]),
        (None, CONV, ["conv/kernel", "dense/kernel"]),
        (None, {"conv": CONV}, ["conv/kernel", "dense/kernel"]),
        (
            None,
            lambda path, leaf: CONV if leaf.ndim == 4 else None,
            ["conv/kernel", "dense/kernel"],
        ),
        ("dense/kernel$", None, ["dense/kernel"]),
        (lambda path, leaf: leaf.ndim == 4, CONV, ["conv/kernel"]),
    ],
)
def test_select(where, axes, wanted):
    assert list(_leaves.select(params(), where, axes)) == wanted
    shapes = jax.eval_shape(params)
    assert list(_leaves.select(shapes, where, axes)) == wanted


@pytest.mark.parametrize("axes", [CONV, (3, (0, 1, 2)), ((2, 0), 3), (-1, -2), ((1,), (3, 0))])
def test_matrices_and_back(axes):
    """Entry by entry, and restored to the same bits."""
    tree = {"a": jnp.asarray(gaussian((2, 3, 4, 5)))}
    places = _leaves.select(tree, None, axes)
    matrix = _leaves.matrices(tree, places)["a"]
    rows, columns = (tuple(np.atleast_1d(x) % 4) for x in axes)
    batch = [axis for axis in range(4) if axis not in rows + columns]
    for index in [(0, 0, 0, 0), (1, 2, 3, 4), (1, 0, 2, 3)]:
        r, c = (
            np.ravel_multi_index([index[i] for i in part], [tree["a"].shape[i] for i in part])
            for part in (rows, columns)
        )
        assert matrix[(*(index[i] for i in batch), r, c)] == tree["a"][index]
    assert_same_bits(_leaves.update(lambda a: a, tree, places), tree)
    shape = _leaves.shapes(tree, places)["a"]
    assert (shape.shape, shape.dtype) == (matrix.shape, matrix.dtype)


def test_dimension_numbers_of_optax_are_axes():
    import optax

    numbers = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    found = regularizers.penalty(params(), norms.nuclear, axes=numbers)
    assert_within(found, regularizers.penalty(params(), norms.nuclear, axes=CONV), 1)


def test_paths_with_slashes_stay_apart():
    tree = {"a/b": jnp.eye(2), "a": {"b": 2 * jnp.eye(2)}}
    assert_within(regularizers.penalty(tree, norms.nuclear), 6.0, 10)


# ------------------------------------------------------------------------------------- penalties


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_penalties(dtype):
    p = params(dtype)
    kernels = p["conv"]["kernel"].reshape(12, 5), p["dense"]["kernel"]
    nuclear = sum(values(k).sum() for k in kernels)
    assert_within(regularizers.penalty(p, norms.nuclear, axes=CONV), nuclear, 20)
    largest = [values(k)[0] for k in kernels]
    assert_within(regularizers.spectral_norm(p, axes=CONV), np.sum(np.square(largest)), 20)
    assert_within(regularizers.spectral_norm(p, "dense/k", power=3), largest[1] ** 3, 20)


def test_penalty_of_batch_axes_is_a_sum():
    tree = {"heads": jnp.asarray(gaussian((3, 4, 5)))}
    found = regularizers.penalty(tree, norms.nuclear, axes=(1, 2))
    assert_within(found, values(tree["heads"]).sum(), 20)


def test_gradient_of_the_penalty_of_the_largest():
    p = params()
    gradient = jax.jit(jax.grad(lambda p: regularizers.spectral_norm(p, "dense/kernel")))(
        {"dense": p["dense"]}
    )["dense"]
    U, s, Vh = np.linalg.svd(double(p["dense"]["kernel"]))
    np.testing.assert_allclose(gradient["kernel"], 2 * s[0] * np.outer(U[:, 0], Vh[0]), atol=1e-13)
    np.testing.assert_array_equal(gradient["bias"], 0)


def test_equinox_modules():
    eqx = pytest.importorskip("equinox")
    layer = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    found = regularizers.spectral_norm(layer, r"weight$", power=1)
    assert_within(found, values(layer.weight)[0], 20)


# --------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize("mode", ["at_most", "exact"])
def test_spectral_normalize(mode):
    p = {
        "big": jnp.asarray(with_values((4, 2, 1), 5, 3)),
        "small": jnp.asarray(with_values((0.5, 0.2), 3, 2)),
        "b": jnp.ones(3),
    }
    before = jax.tree.map(jnp.copy, p)
    state = regularizers.spectral_normalize_init(jax.eval_shape(lambda: p))
    step = jax.jit(
        lambda p, state: regularizers.spectral_normalize(p, state, mode=mode, max_norm=1.5)
    )
    for _ in range(25):
        scaled, state = step(p, state)
    assert_same_bits(p, before)
    sizes = {name: values(scaled[name])[0] for name in ("big", "small")}
    wanted = {"big": 1.5, "small": 1.5 if mode == "exact" else 0.5}
    np.testing.assert_allclose(sizes["big"], wanted["big"], rtol=1e-8)
    np.testing.assert_allclose(sizes["small"], wanted["small"], rtol=1e-8)
    assert_same_bits(scaled["b"], p["b"])
    if mode == "at_most":
        assert_same_bits(scaled["small"], p["small"])

    def evaluate(p, state):
        return regularizers.spectral_normalize(p, state, mode=mode, max_norm=1.5, update=False)

    first, same = evaluate(p, state)
    assert same is state
    assert_same_bits(evaluate(p, state)[0], first)
    assert_within(first, step(p, state)[0], 100)


def test_gradient_through_normalisation():
    """d/dW of <W / s_1, X> = (X - <W / s_1, X> u v^T) / s_1 (Miyato et al. (2018), equation 12)."""
    W, X = with_values((4, 2, 1), 5, 3), gaussian((5, 3))
    state = regularizers.spectral_normalize_init(jnp.asarray(W))

    def normalize(W, state):
        return regularizers.spectral_normalize(W, state, mode="exact")

    step = jax.jit(normalize)
    for _ in range(40):
        _, state = step(jnp.asarray(W), state)
    gradient = jax.jit(jax.grad(lambda W, state: jnp.sum(normalize(W, state)[0] * X)))
    gradient = gradient(jnp.asarray(W), state)
    U, s, Vh = np.linalg.svd(W)
    wanted = (X - np.sum(W * X) / s[0] * np.outer(U[:, 0], Vh[0])) / s[0]
    np.testing.assert_allclose(gradient, wanted, atol=1e-8)


def test_kernels_with_more_axes_are_normalised_as_matrices():
    p = params()
    axes = {"conv": CONV}
    state = regularizers.spectral_normalize_init(p, axes=axes)
    step = jax.jit(lambda p, s: regularizers.spectral_normalize(p, s, axes=axes, mode="exact"))
    for _ in range(40):
        scaled, state = step(p, state)
    np.testing.assert_allclose(values(scaled["conv"]["kernel"].reshape(12, 5))[0], 1, rtol=1e-6)
    assert scaled["conv"]["kernel"].shape == p["conv"]["kernel"].shape


# ---------------------------------------------------------------------------------------- report


def test_report():
    s = (4.0, 2.0, 1.0, 0.0)
    tree = {
        "w": jnp.asarray(with_values(s, 6, 4)),
        "heads": jnp.asarray(gaussian((2, 3, 3))),
        "zero": jnp.zeros((2, 2)),
    }
    report = regularizers.report(tree)
    assert report.left_out == ("heads",)
    assert [row.layer for row in report.rows] == ["w", "zero"]
    row = report.rows[0]
    p = np.array(s[:3]) / 7
    wanted = (4, 21 / 16, np.exp(-np.sum(p * np.log(p))))
    np.testing.assert_allclose((row.sigma, row.stable_rank, row.effective_rank), wanted, rtol=1e-12)
    assert row.condition > 1e14
    assert (row.shape, row.rank90, row.rank99) == ((6, 4), 2, 3)
    assert report.rows[1].sigma == 0
    text = str(report)
    assert "heads" in text
    lines = text.splitlines()
    assert len({len(line) for line in lines[:3]}) == 1
    html = report._repr_html_()
    assert html.count("<tr>") == 3
    assert "6 x 4" in html
    batched = regularizers.report(tree, "heads", axes=(1, 2))
    assert [row.layer for row in batched.rows] == ["heads[0]", "heads[1]"]
    escaped = regularizers.report({"<w>": jnp.eye(2)})._repr_html_()
    assert "&lt;w&gt;" in escaped


# ------------------------------------------------------------------------------------- bad input

P = params()
NORMALIZE = regularizers.spectral_normalize
STATE = regularizers.spectral_normalize_init(P)
OTHER = regularizers.spectral_normalize_init({"dense": {"kernel": jnp.ones((5, 5))}})

REFUSED = [
    (
        ValueError,
        "penalty: `where` must match a path, got 'missing'; the paths are conv/bias, conv/kernel",
        lambda: regularizers.penalty(P, norms.nuclear, "missing"),
    ),
    (
        ValueError,
        "penalty: `where` must select leaves of two axes or more, got 'conv/bias' of shape",
        lambda: regularizers.penalty(P, norms.nuclear, "bias"),
    ),
    (
        TypeError,
        "penalty: `where` must select floating-point or complex leaves, got 'steps' of dtype int",
        lambda: regularizers.penalty(P, norms.nuclear, "steps"),
    ),
    (
        ValueError,
        "spectral_norm: `axes` must say which axes of leaf 'conv/kernel' are rows",
        lambda: regularizers.spectral_norm(P, "kernel"),
    ),
    (
        ValueError,
        r"penalty: `axes` must be a pair .* of leaf 'conv/kernel'.*got \(\(0, 1\), 7\)",
        lambda: regularizers.penalty(P, norms.nuclear, axes=((0, 1), 7)),
    ),
    (
        ValueError,
        "penalty: `axes` must be a pair .*got 5",
        lambda: regularizers.penalty(P, norms.nuclear, axes=lambda path, leaf: 5),
    ),
    (
        ValueError,
        "penalty: `params` must hold a matrix, got none of two axes; the paths are b",
        lambda: regularizers.penalty({"b": jnp.ones(3)}, norms.nuclear),
    ),
    (
        ValueError,
        r"penalty: `where` must be a regular expression, got '\('",
        lambda: regularizers.penalty(P, norms.nuclear, "("),
    ),
    (
        TypeError,
        "penalty: `where` must be None, a regular expression or a predicate",
        lambda: regularizers.penalty(P, norms.nuclear, 3),
    ),
    (TypeError, "penalty: `norm` must be a function", lambda: regularizers.penalty(P, "nuclear")),
    (
        ValueError,
        "penalty: `norm` must return shape .* for leaf 'dense/kernel'",
        lambda: regularizers.penalty(P, jnp.square),
    ),
    (
        ValueError,
        "spectral_norm: `power` must be a number > 0",
        lambda: regularizers.spectral_norm(P, power=0),
    ),
    (
        ValueError,
        "spectral_normalize: `max_norm` must be a number > 0, got float -1.0",
        lambda: NORMALIZE(P, STATE, max_norm=-1.0),
    ),
    (
        ValueError,
        "spectral_normalize: `mode` must be one of 'at_most', 'exact'",
        lambda: NORMALIZE(P, STATE, mode="below"),
    ),
    (
        ValueError,
        "spectral_normalize: `state` must come from .* which differs at conv/kernel",
        lambda: NORMALIZE(P, STATE, axes=CONV),
    ),
    (
        ValueError,
        "spectral_normalize: `state` must come from spectral_normalize_init",
        lambda: NORMALIZE(P, None),
    ),
    (
        ValueError,
        "spectral_normalize: `state` does not fit leaf 'dense/kernel'",
        lambda: NORMALIZE(P, OTHER),
    ),
    (
        TypeError,
        "report: leaf 'dense/kernel' must be a concrete array",
        lambda: jax.eval_shape(lambda p: regularizers.report(p).rows[0].sigma, P),
    ),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_bad_input(number):
    error, message, call = REFUSED[number]
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_empty_pytree_has_no_penalty():
    assert regularizers.penalty({}, jaxsvd.norms.nuclear) == 0
