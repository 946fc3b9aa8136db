"""Matrices spread over eight devices: the numbers of one, nothing gathered, results in place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsvd
from tests.collectives import collectives, decompositions
from tests.helpers import adjoint, double, eps, gaussian, jit, orthonormal

P = PartitionSpec
M, N, K = 192, 128, 4
KEY = jax.random.key(0)
# Columns of all bases together, the largest block of a small matrix: no axis of A is as short.
SMALL = 64

MESHES = {"8": ((8,), ("i",)), "4x2": ((4, 2), ("i", "j")), "2x4": ((2, 4), ("i", "j"))}
PLACES = {
    "rows": ("8", P("i", None)),
    "columns": ("8", P(None, "i")),
    "both 4x2": ("4x2", P("i", "j")),
    "both 2x4": ("2x4", P("i", "j")),
    "rows over both axes": ("4x2", P(("i", "j"), None)),
    "columns over one of two": ("2x4", P(None, "j")),
}
EVERY_PLACE = pytest.mark.parametrize("place", PLACES)
EVERY_KIND = pytest.mark.parametrize(
    "kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name
)

METHODS = {
    "krylov": lambda a: jaxsvd.truncated_svd(a, K, method="krylov"),
    "subspace": lambda a: jaxsvd.truncated_svd(a, K, method="subspace"),
    "randomized": lambda a: jaxsvd.randomized_svd(KEY, a, K, power_iterations=8),
    "adaptive": lambda a: jaxsvd.adaptive_svd(KEY, a, 0.05, max_rank=K),
    "core": lambda a: jaxsvd.core_svd(a, K, method="krylov"),
}


@functools.cache
def values() -> np.ndarray:
    return 2.0 ** -np.arange(N)


@functools.cache
def matrix(dtype=np.float32) -> np.ndarray:
    Q, W = orthonormal(M, N, dtype, 1), orthonormal(N, N, dtype, 2)
    return ((Q * values()) @ adjoint(W)).astype(dtype)


@functools.cache
def mesh(name: str, kind: AxisType):
    shape, axes = MESHES[name]
    return jax.make_mesh(shape, axes, axis_types=(kind,) * len(axes))


def placed(a, place: str, kind: AxisType):
    name, spec = PLACES[place]
    return jax.device_put(a, NamedSharding(mesh(name, kind), spec))


def is_placed(x, m, *spec) -> bool:
    return x.sharding.is_equivalent_to(NamedSharding(m, P(*spec)), x.ndim)


# Weights of a loss that depends on subspaces, values and phases-free products of the factors.
X, Y = gaussian((M,), np.float32, 3), gaussian((N,), np.float32, 4)


def of_result(result):
    """x^T A_k y: a loss of the product of the factors."""
    U, S, Vh = result
    left, right = jnp.sum(U * X[:, None], axis=0), jnp.sum(Vh * Y[None, :], axis=1)
    S = jnp.diag(S) if S.ndim == 1 else S
    return jnp.sum(left[:, None] * S * right[None, :])


def expected_value(a: np.ndarray) -> float:
    U, S, Vh = np.linalg.svd(double(a), full_matrices=False)
    return float((double(X) @ U[:, :K] * S[:K]) @ (Vh[:K] @ double(Y)))


@functools.cache
def expected_slope() -> tuple[np.ndarray, float]:
    """A direction, and the derivative of the loss along it by central differences."""
    E, h = gaussian((M, N), np.float64, 5) / N, 1e-6
    a = double(matrix())
    return E, (expected_value(a + h * E) - expected_value(a - h * E)) / (2 * h)


def value_and_gradient(method):
    def loss(a):
        result = method(a)
        return of_result(result), result

    return jax.value_and_grad(loss, has_aux=True)


def check_program(text: str, *, m: int = M, n: int = N) -> None:
    """Nothing with as many rows as A travels but blocks in sums, and no long axis is factored."""
    for call in collectives(text):
        if call.kind in ("all-gather", "all-to-all", "reduce-scatter"):
            raise AssertionError(f"{call.kind} of {call.shapes}")
        # A sum of blocks of 8 columns and of what goes with them, never of the matrix.
        assert max(np.prod(s, initial=1) for s in call.shapes) <= SMALL * max(m, n) // 2, call
    assert collectives(text)
    for call in decompositions(text):
        assert call.longest <= SMALL, call


def check_result(result, a: np.ndarray, *, tol: float = 1e-5) -> None:
    U, S, Vh = (double(x) for x in result)
    if S.ndim == 2:
        S = np.diag(S)
    a = double(a)
    np.testing.assert_allclose(S, values()[:K], rtol=0, atol=10 * eps(np.float32))
    residuals = (
        np.linalg.norm(a @ adjoint(Vh) - U * S, axis=0),
        np.linalg.norm(adjoint(a) @ U - adjoint(Vh) * S, axis=0),
    )
    assert np.max(residuals) <= tol


@EVERY_KIND
@EVERY_PLACE
def test_triplets_and_gradient_stay_where_the_matrix_is(place, kind):
    check("krylov", place, kind)


@EVERY_KIND
@pytest.mark.parametrize("place", ["rows", "both 2x4"])
def test_randomized(place, kind):
    check("randomized", place, kind)


@pytest.mark.parametrize("method", ["subspace", "adaptive", "core"])
def test_other_methods(method):
    check(method, "both 4x2", AxisType.Explicit)


def check(method: str, place: str, kind: AxisType) -> None:
    a = placed(matrix(), place, kind)
    program = jit(value_and_gradient(METHODS[method])).lower(a).compile()
    check_program(program.as_text())
    (value, result), gradient = program(a)
    check_result(result, matrix())
    E, slope = expected_slope()
    np.testing.assert_allclose(value, expected_value(matrix()), rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.sum(double(gradient) * E), slope, rtol=0, atol=1e-4)
    name, (rows, columns) = PLACES[place]
    there = mesh(name, kind)
    U, S, Vh = result
    assert is_placed(U, there, rows, None)
    assert is_placed(S, there)
    assert is_placed(Vh, there, None, columns)
    assert is_placed(gradient, there, rows, columns)
