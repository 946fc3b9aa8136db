"""Matrices spread over eight devices: the numbers of one, nothing gathered, results in place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsvd
from benchmarks.hlo import collectives, decompositions
from tests.helpers import adjoint, double, eps, gaussian, orthonormal

P = PartitionSpec
M, N, K = 192, 128, 4
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
    "randomized": lambda a: jaxsvd.randomized_svd(jax.random.key(0), a, K, power_iterations=8),
    "adaptive": lambda a: jaxsvd.adaptive_svd(jax.random.key(0), a, 0.05, max_rank=K),
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
    program = jax.jit(value_and_gradient(METHODS[method])).lower(a).compile()
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


@EVERY_KIND
@pytest.mark.parametrize("function", ["truncated", "randomized"])
def test_eagerly_as_inside_a_program(function, kind):
    method = METHODS["krylov" if function == "truncated" else function]
    a = placed(matrix(), "rows", kind)
    result = method(a)
    check_result(result, matrix())
    assert is_placed(result.U, mesh("8", kind), "i", None)


@pytest.mark.parametrize("method", ["auto", "full"])
@pytest.mark.parametrize("wide", [False, True])
def test_a_long_matrix_with_a_short_side_is_not_gathered(method, wide):
    """The full SVD serves small matrices; of a long one it is taken by products."""
    a = gaussian((4096, 32), np.float32)
    place, a = ("columns", a.T) if wide else ("rows", a)
    there = placed(a, place, AxisType.Auto)
    gradient = value_and_gradient_of_energy(lambda a: jaxsvd.truncated_svd(a, 3, method=method))
    program = jax.jit(gradient).lower(there).compile()
    check_program(program.as_text(), m=4096, n=32)
    (value, _), slope = program(there)
    U, S, Vh = np.linalg.svd(double(a), full_matrices=False)
    np.testing.assert_allclose(value, np.sum(S[:3] ** 2), rtol=1e-5)
    expected = 2 * (U[:, :3] * S[:3]) @ Vh[:3]
    np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-3 * S[0])
    assert is_placed(slope, mesh("8", AxisType.Auto), *PLACES[place][1])


def value_and_gradient_of_energy(method):
    def loss(a):
        result = method(a)
        return jnp.sum(result[1] ** 2), result

    return jax.value_and_grad(loss, has_aux=True)


# ---------------------------------------------------------------------------------------- sparse


@EVERY_KIND
@pytest.mark.parametrize("form", ["BCOO", "BCSR"])
def test_sparse_rows(form, kind):
    """The nonzeros of an eighth of the rows on each device; the gradient is one of nonzeros."""
    rng = np.random.default_rng(0)
    columns = np.sort(rng.permuted(np.tile(np.arange(N), (M, 1)), axis=1)[:, :8], axis=1)
    data = rng.standard_normal(M * 8).astype(np.float32)
    indices = np.stack([np.repeat(np.arange(M), 8), columns.ravel()], axis=1).astype(np.int32)
    there = NamedSharding(mesh("8", kind), P("i"))
    whole = NamedSharding(mesh("8", kind), P())
    put = functools.partial(jax.device_put, device=there)
    if form == "BCOO":
        where, assemble = put(indices), lambda x, i: sparse.BCOO((x, i), shape=(M, N))
    else:
        starts = jax.device_put(np.arange(0, 8 * M + 1, 8, dtype=np.int32), whole)
        where = put(indices[:, 1]), starts
        assemble = lambda x, i: sparse.BCSR((x, *i), shape=(M, N))  # noqa: E731

    dense = np.zeros((M, N))
    dense[indices[:, 0], indices[:, 1]] = data
    method = METHODS["krylov"]

    def gradient(x, i):
        return value_and_gradient_of_energy(lambda x: method(assemble(x, i)))(x)

    program = jax.jit(gradient).lower(put(data), where).compile()
    for call in collectives(program.as_text()):
        assert call.kind == "all-reduce" or call.longest <= SMALL, call
    for call in decompositions(program.as_text()):
        assert call.longest <= SMALL, call
    (value, _), slope = program(put(data), where)
    U, S, Vh = np.linalg.svd(dense)
    np.testing.assert_allclose(value, np.sum(S[:K] ** 2), rtol=1e-5)
    expected = (2 * (U[:, :K] * S[:K]) @ Vh[:K])[indices[:, 0], indices[:, 1]]
    np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-3)
    assert is_placed(slope, mesh("8", kind), "i")


# ------------------------------------------------------------------------- batches and shard_map


@EVERY_KIND
def test_a_sharded_batch_of_small_matrices_stays_local(kind):
    a = jax.device_put(gaussian((2048, 3, 3), np.float32), NamedSharding(mesh("8", kind), P("i")))

    def loss(a):
        U, S, Vh = jaxsvd.svd(a, full_matrices=False)
        return jnp.sum(S**3, axis=-1) + jnp.sum(U[..., 0] * Vh[..., 0, :], axis=-1)

    def pulled(a):
        value, pull = jax.vjp(loss, a)
        return value, pull(jnp.ones_like(value))[0]

    program = jax.jit(pulled).lower(a).compile()
    # Nothing but whether a matrix anywhere wants another sweep.
    assert all(call.longest == 1 for call in collectives(program.as_text()))
    value, slope = program(a)
    on_one = jax.jit(pulled)(jnp.asarray(np.asarray(a)))
    for actual, desired in zip((value, slope), on_one, strict=True):
        np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-5)
        assert is_placed(actual, mesh("8", kind), "i")


def test_inside_shard_map_each_device_factors_its_own():
    """Eight matrices, one on each device: no collective, whatever their number of iterations."""
    there = mesh("8", AxisType.Explicit)
    stack = np.stack([matrix() * 2.0**-i for i in range(8)])
    stack[3] = matrix()[::-1]
    a = jax.device_put(stack, NamedSharding(there, P("i")))

    def local(a):
        (_, result), gradient = value_and_gradient(METHODS["krylov"])(a[0])
        return jax.tree.map(lambda x: x[None], (result, gradient))

    spec = P("i")
    program = jax.jit(jax.shard_map(local, mesh=there, in_specs=spec, out_specs=spec)).lower(a)
    program = program.compile()
    assert not collectives(program.as_text())
    (_, S, _), gradient = program(a)
    expected = values()[:K] * (2.0 ** -np.arange(8))[:, None]
    expected[3] = values()[:K]
    np.testing.assert_allclose(S, expected, rtol=1e-6)
    gradient = np.asarray(gradient)
    np.testing.assert_allclose(gradient[1], gradient[0], rtol=1e-3, atol=1e-4)


def test_an_axis_that_the_mesh_does_not_divide():
    """Such an array cannot be made; inside a program the compiler pads it."""
    there = NamedSharding(mesh("8", AxisType.Auto), P("i", None))
    a = matrix()[:190]
    with pytest.raises(ValueError, match="partitioned 8 times, but the dimension size is 190"):
        jax.device_put(a, there)
    program = jax.jit(lambda a: METHODS["krylov"](jax.lax.with_sharding_constraint(a, there)))
    result = program(a)
    expected = np.linalg.svd(double(a), compute_uv=False)[:K]
    np.testing.assert_allclose(result.S, expected, rtol=0, atol=10 * eps(np.float32))


def test_inside_shard_map_rows_may_lie_on_the_other_axes():
    """One matrix for each half of the devices, its rows over the four of them."""
    there = mesh("2x4", AxisType.Auto)
    stack = np.stack([matrix(), matrix() / 2])
    a = jax.device_put(stack, NamedSharding(there, P("i", "j")))

    def local(a):
        (_, result), gradient = value_and_gradient_of_energy(METHODS["randomized"])(a[0])
        return jax.tree.map(lambda x: x[None], (result, gradient))

    spec = P("i")
    with jax.set_mesh(there):
        mapped = jax.shard_map(local, in_specs=spec, out_specs=spec, axis_names={"i"})
        program = jax.jit(mapped).lower(a).compile()
    check_program(program.as_text())
    assert {call.group for call in collectives(program.as_text())} == {4}
    (U, S, _), gradient = program(a)
    expected = values()[:K] * np.array([[1], [0.5]])
    np.testing.assert_allclose(S, expected, rtol=0, atol=10 * eps(np.float32))
    assert is_placed(U, there, "i", "j", None)
    assert is_placed(gradient, there, "i", "j", None)
