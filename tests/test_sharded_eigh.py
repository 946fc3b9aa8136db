"""`truncated_eigh` of matrices spread over eight devices; as `test_sharded`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import jaxsvd
from benchmarks.hlo import collectives
from tests.helpers import adjoint, double, eps, gaussian, hermitian
from tests.test_sharded import EVERY_KIND, PLACES, is_placed, mesh, placed

N, K = 192, 4
X = gaussian((N,), np.float32, 3)
FIRST = {"LA": slice(None, -K - 1, -1), "SA": slice(K), "LM": slice(None, -K - 1, -1)}
PLACED = pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("rows", AxisType.Auto),
        ("columns", AxisType.Auto),
        ("rows", AxisType.Explicit),
        ("columns", AxisType.Explicit),
        ("both 4x2", AxisType.Explicit),
    ],
)


@functools.cache
def matrix() -> np.ndarray:
    """Eigenvalues 1, 1/2, 1/4, ... and -0.6, -0.3, ..., in float32."""
    sizes = 2.0 ** -np.arange(N // 2)
    return hermitian(np.concatenate([sizes, -0.6 * sizes]), np.float32, 1)


def expected(a: np.ndarray, which: str) -> tuple[np.ndarray, np.ndarray]:
    w, Q = np.linalg.eigh(a)
    order = np.argsort(np.abs(w)) if which == "LM" else np.arange(N)
    kept = order[FIRST[which]]
    return w[kept], Q[:, kept]


def expected_loss(a: np.ndarray, which: str) -> float:
    w, Q = expected(a, which)
    return float(np.sum(w**2 * (double(X) @ Q) ** 2))


def value_and_gradient(which: str, function=jaxsvd.truncated_eigh):
    def loss(a):
        result = function(a, K, which, method="krylov")
        Q, w = result.eigenvectors, result.eigenvalues
        return jnp.sum(w**2 * jnp.sum(Q * X[:, None], axis=0) ** 2), result

    return jax.value_and_grad(loss, has_aux=True)


def core_value_and_gradient(which: str):
    def loss(a):
        Q, C = jaxsvd.core_eigh(a, K, which, method="krylov")
        left = jnp.sum(Q * X[:, None], axis=0)
        return jnp.sum((left[None, :] @ C) ** 2), (Q, C)

    return jax.value_and_grad(loss, has_aux=True)


def check(which: str, place: str, kind: AxisType, function, *, core: bool) -> None:
    a = placed(matrix(), place, kind)
    program = jax.jit(function(which)).lower(a).compile()
    (value, result), gradient = program(a)
    exact = double(matrix())
    w, _ = expected(exact, which)
    Q, values = (double(x) for x in (result if core else result[::-1]))
    values = np.diag(values) if core else values
    np.testing.assert_allclose(values, w, rtol=0, atol=20 * eps(np.float32))
    assert np.max(np.linalg.norm(exact @ Q - Q * values, axis=0)) <= 1e-5
    np.testing.assert_allclose(adjoint(Q) @ Q, np.eye(K), rtol=0, atol=20 * eps(np.float32))
    E, h = gaussian((N, N), np.float64, 5) / N, 1e-6
    E = (E + E.T) / 2
    slope = (expected_loss(exact + h * E, which) - expected_loss(exact - h * E, which)) / (2 * h)
    np.testing.assert_allclose(value, expected_loss(exact, which), rtol=0, atol=1e-4)
    np.testing.assert_allclose(np.sum(double(gradient) * E), slope, rtol=0, atol=1e-3)
    if kind == AxisType.Auto and place != "rows":
        return  # the compiler may gather A for its mean with A^H, and chooses the places
    # Half of a matrix over two axes travels for that mean, no more.
    for call in collectives(program.as_text()):
        assert max(np.prod(shape, initial=1) for shape in call.shapes) <= N * N // 2, call
    _, (rows, columns) = PLACES[place]
    there = mesh(PLACES[place][0], kind)
    assert is_placed(result[0] if core else result.eigenvectors, there, rows, None)
    assert is_placed(gradient, there, rows, columns)


@PLACED
def test_pairs_and_gradient_stay_where_the_matrix_is(place, kind):
    check("LA", place, kind, value_and_gradient, core=False)


@pytest.mark.parametrize("which", ["SA", "LM"])
def test_other_ends(which):
    check(which, "both 4x2", AxisType.Explicit, value_and_gradient, core=False)


@EVERY_KIND
def test_core(kind):
    check("LM", "rows", kind, core_value_and_gradient, core=True)


@EVERY_KIND
@pytest.mark.parametrize("method", ["auto", "full"])
def test_all_pairs_of_a_small_matrix(method, kind):
    """What is small goes through all its pairs, and is right wherever it lies."""
    a = hermitian(np.linspace(-1, 2, 16), np.float32, 2)
    there = jax.device_put(a, placed(matrix(), "both 2x4", kind).sharding)

    def loss(a):
        w, Q = jaxsvd.truncated_eigh(a, 3, method=method)
        return jnp.sum((Q * w[None, :]) ** 2) + jnp.trace(jaxsvd.core_eigh(a, 3, method=method).C)

    value, gradient = jax.jit(jax.value_and_grad(loss))(there)
    w, Q = np.linalg.eigh(double(a))
    wanted = (Q[:, -3:] * (2 * w[-3:] + 1)) @ Q[:, -3:].T
    np.testing.assert_allclose(value, np.sum(w[-3:] ** 2) + np.sum(w[-3:]), rtol=1e-5)
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-4)
