"""Operators against their dense matrices, through every transformation, and their bad input."""

import functools
import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from jax import lax
from jax.experimental import sparse
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxsvd import operators
from jaxsvd.operators import as_operator, check_adjoint, check_linear
from tests.helpers import (
    COMPLEX128,
    FLOAT32,
    adjoint,
    assert_same_bits,
    assert_within,
    double,
    equations,
    gaussian,
    like,
)

M, N, L = 7, 5, 3

# Many small programs, each run once or twice: what they take is the compiler's time.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
compiled = functools.partial(jax.jit, compiler_options=FAST)


class Case(NamedTuple):
    """An operator as a function of its arrays, and the same for its dense matrix."""

    params: Any  # pytree of arrays that gradients reach
    build: Any  # params -> operator
    dense: Any  # params -> array (m, n)


# ---------------------------------------------------------------------------------------- cases

# Of a 7 x 5 matrix: in no order, one twice, three that only pad, an empty row and column.
ROWS = np.array([3, 0, 6, 3, 7, 1, 0, 2, 6, 7, 3, 1], np.int32)
COLUMNS = np.array([1, 0, 3, 1, 5, 2, 2, 0, 0, 2, 0, 5], np.int32)


def sparse_dense(data, shape=(M, N)):
    return jnp.zeros(shape, data.dtype).at[ROWS, COLUMNS].add(data, mode="drop")


def of_function(params, x):
    """Linear in x (5,), 7 outputs: products, slices, a cumulative sum, an integer leaf."""
    w, order = params
    y = jnp.cumsum(w * x[order])
    return jnp.concatenate([y, 2 * x[1:3]])


def nonlinear(params, x):
    y = jnp.concatenate([x["a"], x["b"].ravel()])
    return {"one": jnp.sin(params @ y), "two": y[:2] ** 2}


def loops(kernel, input_shape, *, strides=1, padding="SAME", dilation=1, groups=1) -> np.ndarray:
    """The matrix of a convolution, channels last, entry by entry."""
    *taps, inputs, outputs = kernel.shape
    *sizes, channels = input_shape
    d = len(taps)
    strides, dilation = (np.broadcast_to(x, d) for x in (strides, dilation))
    reach = (np.array(taps) - 1) * dilation + 1
    if padding == "SAME":
        total = np.maximum((-(-np.array(sizes) // strides) - 1) * strides + reach - sizes, 0)
        pads = np.stack([total // 2, total - total // 2], axis=1)
    elif padding == "CIRCULAR":
        pads = np.stack([(reach - 1) // 2, reach // 2], axis=1)
    else:
        pads = np.zeros((d, 2), int) if padding == "VALID" else np.array(padding)
    out = (np.array(sizes) + pads.sum(1) - reach) // strides + 1
    matrix = np.zeros((*out, outputs, *sizes, channels), kernel.dtype)
    for p in np.ndindex(*out):
        for q in np.ndindex(*taps):
            place = np.array(p) * strides + np.array(q) * dilation - pads[:, 0]
            if padding == "CIRCULAR":
                place %= sizes
            elif np.any((place < 0) | (place >= sizes)):
                continue
            for o in range(outputs):
                group = o // (outputs // groups)
                for i in range(inputs):
                    matrix[(*p, o, *place, group * inputs + i)] += kernel[(*q, i, o)]
    return matrix.reshape(np.prod(out) * outputs, -1)


def jacobian_dense(params):
    w, x = params
    y = jnp.concatenate([x["a"], x["b"].ravel()])
    square = jnp.zeros((2, N), y.dtype).at[jnp.arange(2), jnp.arange(2)].set(2 * y[:2])
    return jnp.concatenate([jnp.cos(w @ y)[:, None] * w, square])


def function_dense(params):
    w, order = params
    eye = jnp.eye(N, dtype=w.dtype)
    return jnp.concatenate([jnp.cumsum(w[:, None] * eye[order], axis=0), 2 * eye[1:3]])


@functools.cache
def kernel_basis():
    """The matrices (3, 6) of the entries of a kernel (2, 2, 1) on an input (3, 2)."""
    entries = np.eye(4).reshape(4, 2, 2, 1)
    return np.stack([loops(entry, (3, 2)) for entry in entries])


def sparse_operator(data):
    return operators.Sparse(data, jnp.asarray(ROWS), jnp.asarray(COLUMNS), (M, N))


D = operators.Dense
# Of each: shapes of the parameters, params -> operator, params -> dense matrix.
KINDS = {
    "dense": ((M, N), D, lambda a: a),
    "sparse": ((12,), sparse_operator, sparse_dense),
    "prepared": ((12,), lambda d: sparse_operator(d).prepared(), sparse_dense),
    "function": (
        ((N,), jnp.array([4, 2, 0, 1, 3])),
        lambda p: operators.Function(of_function, p, (N,)),
        function_dense,
    ),
    "jacobian": (
        ((5, N), {"a": (3,), "b": (1, 2)}),
        lambda p: operators.Jacobian(nonlinear, *p),
        jacobian_dense,
    ),
    "low_rank": (
        ((M, 2), (2,), (2, N)),
        lambda p: operators.LowRank(*p),
        lambda p: (p[0] * p[1][None]) @ p[2],
    ),
    "centered": (
        ((M, N), (N,)),
        lambda p: operators.Centered(D(p[0]), p[1]),
        lambda p: p[0] - p[1][None],
    ),
    "own_means": (
        (M, N),
        lambda a: operators.Centered.of_columns(D(a)),
        lambda a: a - jnp.mean(a, axis=0, keepdims=True),
    ),
    "scaled": (((M, N), ()), lambda p: p[1] * D(p[0]), lambda p: p[1] * p[0]),
    "sum": (((M, N), (M, N)), lambda p: D(p[0]) - 2 * D(p[1]), lambda p: p[0] - 2 * p[1]),
    "product": (((M, N), (M, N)), lambda p: D(p[0]) @ D(p[1]).T, lambda p: p[0] @ p[1].T),
    "adjoint": ((M, N), lambda a: D(a).H, lambda a: jnp.conj(a).T),
    "conjugate": ((M, N), lambda a: D(a).H.T, jnp.conj),
    "convolution": (
        (2, 2, 1),
        lambda k: operators.Convolution(k, (3, 2)),
        lambda k: jnp.tensordot(k.ravel(), jnp.asarray(kernel_basis(), k.dtype), 1),
    ),
}
NAMES = list(KINDS)
COMPOSED = ("own_means", "scaled", "sum", "product", "adjoint", "conjugate")


def case(name: str, dtype=np.float64) -> tuple[Case, operators.Operator, np.ndarray]:
    shapes, build, dense = KINDS[name]

    def is_shape(x):
        return isinstance(x, tuple) and all(isinstance(size, int) for size in x)

    leaves, structure = jax.tree.flatten(shapes, is_leaf=is_shape)
    leaves = [
        jnp.asarray(gaussian(leaf, dtype, i) / 2) if is_shape(leaf) else leaf
        for i, leaf in enumerate(leaves)
    ]
    params = structure.unflatten(leaves)
    return Case(params, build, dense), build(params), double(compiled(dense)(params))


def block(rows: int, dtype=np.float64, seed: int = 50, columns: int = L) -> jax.Array:
    return jnp.asarray(gaussian((rows, columns), dtype, seed))


# ------------------------------------------------------------------------------------- products


@compiled
def everything(A, X, Y):
    products = A.matmat(X), A.rmatmat(Y), A @ X[:, 0], Y[:, 0] @ A, Y.T @ A, A.to_dense()
    return *products, A.T.to_dense(), A.T.matmat(Y), A.H.matmat(Y), A.T.H.matmat(X)


@pytest.mark.parametrize("dtype", [FLOAT32, COMPLEX128])
@pytest.mark.parametrize("name", NAMES)
def test_products(name, dtype):
    _, A, dense = case(name, dtype)
    m, n = dense.shape
    assert A.shape == (m, n)
    assert A.dtype == dtype
    assert f"{m} x {n}" in repr(A)
    assert isinstance(A.T.T, type(A))
    assert isinstance(A.H.H, type(A))
    # A real operator takes complex blocks too; composed ones leave it to their parts.
    dtypes = {dtype} if name in COMPOSED else {dtype, np.result_type(dtype, np.complex64).type}
    for block_dtype in dtypes:
        X, Y = block(n, block_dtype), block(m, block_dtype, 60)
        products = everything(A, X, Y)
        assert all(y.dtype in (dtype, block_dtype) for y in products)
        X, Y = double(X), double(Y)
        desired = dense @ X, adjoint(dense) @ Y, dense @ X[:, 0], Y[:, 0] @ dense, Y.T @ dense
        views = dense, dense.T, dense.T @ Y, adjoint(dense) @ Y, dense.conj() @ X
        assert_within(products, (*desired, *views), 100)


@pytest.mark.parametrize("name", NAMES)
def test_linear_and_adjoint(name):
    _, A, _ = case(name, np.complex128)
    assert check_linear(A) is A
    assert check_adjoint(A, jax.random.key(1)) is A


@pytest.mark.x32
def test_half_precision_is_multiplied_in_float32():
    a = jnp.asarray(gaussian((M, N), np.float32)).astype(jnp.bfloat16)
    kernel = a[:2, :3, None]
    for A in (
        operators.Dense(a),
        operators.LowRank(a, a[0], a[:N]),
        operators.Sparse(a[0], jnp.arange(N), jnp.arange(N), (M, N)),
        operators.Convolution(kernel, (4, 3)),
        operators.Function(lambda w, x: w @ x, a, (N,)),
        operators.Centered(operators.Dense(a), a[0]),
    ):
        assert A.dtype == jnp.float32
        X, Y = (jnp.ones((size, 2), jnp.float32) for size in (A.shape[1], A.shape[0]))
        y, z = compiled(lambda A, X, Y: (A.matmat(X), A.rmatmat(Y)))(A, X, Y)
        assert y.dtype == z.dtype == jnp.float32
        # Functions compute in the precision that they are written in.
        tolerance = 1e5 if isinstance(A, operators.Function) else 100
        assert_within(jnp.sum(y), jnp.sum(z), tolerance)


def test_mixed_dtypes_promote_under_strict_promotion():
    a, b = gaussian((M, N), np.float32), gaussian((M, N), np.complex64, 1)
    A, B = operators.Dense(jnp.asarray(a)), operators.Dense(jnp.asarray(b))
    mean = jnp.asarray(gaussian((N,), np.complex128, 2))
    for op, dense, dtype in [
        (A + B, a + b, np.complex64),
        (B - A, b - a, np.complex64),
        (A @ B.T, a @ b.T, np.complex64),
        ((2 - 1j) * A, (2 - 1j) * a, np.complex64),
        (A * np.float64(3), 3 * a, np.float32),
        (A / 4, a / 4, np.float32),
        (jnp.int32(3) * A, 3 * a, np.float32),
        (jnp.float64(3) * A, 3 * a, np.float64),
        (operators.Centered(A, mean), a - np.asarray(mean), np.complex128),
        (sum([A, A]), 2 * a, np.float32),
    ]:
        assert op.dtype == dtype
        actual, other = compiled(lambda op: (op.to_dense(), op.H.to_dense()))(op)
        assert actual.dtype == other.dtype == dtype
        tolerance = 100 if dtype in (np.float32, np.complex64) else 1e9
        assert_within((actual, other), (dense, adjoint(dense)), tolerance)
    scaled = compiled(lambda c, A: (c * A).to_dense())(2.0, A)  # a weakly typed scalar
    assert scaled.dtype == np.float32
    assert (A @ jnp.ones(N, np.float64)).dtype == np.float64


# --------------------------------------------------------------------------------------- pytrees


@pytest.mark.parametrize("name", NAMES)
def test_pytrees_hold_anything(name):
    _, A, _ = case(name)
    leaves, structure = jax.tree.flatten(A)
    for filler in (object(), None, 0, "x", jax.ShapeDtypeStruct((), np.float64)):
        other = jax.tree.map(lambda _, filler=filler: filler, A)
        assert isinstance(other, type(A))
        repr(other)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(A)]
    assert all(path.startswith(".") for path in paths)
    with pytest.raises(AttributeError, match="cannot assign"):
        A.anything = 1
    again = pickle.loads(pickle.dumps(A))
    assert type(again) is type(A)
    assert_same_bits(again, structure.unflatten(leaves))


@pytest.mark.parametrize("name", NAMES)
def test_jit_and_vmap_as_argument(name):
    found, A, dense = case(name)
    X = block(dense.shape[1])
    traces = []

    @compiled
    def multiply(A, X):
        traces.append(A)
        return A.matmat(X), A.rmatmat(A.matmat(X))

    def scaled(c):
        return found.build(
            jax.tree.map(lambda x: c * x if jnp.issubdtype(x.dtype, float) else x, found.params)
        )

    both = scaled(1.0), scaled(1.5)
    one = [multiply(op, X) for op in both]
    assert len(traces) == 1
    matrix = double(compiled(lambda A: A.to_dense())(both[1]))
    Y = matrix @ double(X)
    assert_within(one[1], (Y, matrix.T @ Y), 100)

    @compiled
    def mapped(both, X):
        over_operators = jax.vmap(lambda A: (A.matmat(X), A.rmatmat(A.matmat(X))))(both)
        over_vectors = jax.vmap(lambda x: A @ x, in_axes=1, out_axes=1)(X)
        return over_operators, over_vectors, jax.vmap(A.matmat)(jnp.stack([X, 2 * X]))

    stacked = jax.tree.map(lambda *x: np.stack(x), *both)
    desired = jax.tree.map(lambda *x: np.stack(x), *one)
    AX = dense @ double(X)
    assert_within(mapped(stacked, X), (desired, AX, np.stack([AX, 2 * AX])), 100)


# ----------------------------------------------------------------------------------- derivatives


def losses(found: Case, dtype):
    """The same loss of (params, X, Y) by the operator and by its dense matrix."""
    m, n = found.build(found.params).shape
    W, Z = block(m, dtype, 70), block(n, dtype, 80)

    def loss(AX, AHY):
        return jnp.real(jnp.sum(jnp.sin(AX) * W)) + jnp.real(jnp.sum(AHY**2 * Z))

    def by_operator(params, X, Y):
        A = found.build(params)
        return loss(A.matmat(X), A.rmatmat(Y))

    def by_matrix(params, X, Y):
        A = found.dense(params)
        return loss(A @ X, jnp.conj(A).T @ Y)

    return by_operator, by_matrix, (block(n, dtype), block(m, dtype, 60))


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    found, _, _ = case(name, np.complex128)
    by_operator, by_matrix, vectors = losses(found, np.complex128)
    argnums = (0, 1, 2)
    actual, desired = (
        compiled(jax.value_and_grad(f, argnums, allow_int=True))(found.params, *vectors)
        for f in (by_operator, by_matrix)
    )
    floats = lambda tree: [x for x in jax.tree.leaves(tree) if x.dtype != jax.dtypes.float0]  # noqa: E731
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    assert_within(floats(actual), floats(desired), 1000)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in COMPOSED])
def test_tangents_and_second_derivatives(name):
    found, _, _ = case(name)
    by_operator, by_matrix, vectors = losses(found, np.float64)
    split = [jnp.issubdtype(x.dtype, float) for x in jax.tree.leaves(found.params)]
    leaves, structure = jax.tree.flatten(found.params)

    def of_floats(f):
        def function(arguments):
            floats, X, Y = arguments
            floats = iter(floats)
            full = [
                next(floats) if is_float else x for x, is_float in zip(leaves, split, strict=True)
            ]
            return f(structure.unflatten(full), X, Y)

        return function

    point = [x for x, is_float in zip(leaves, split, strict=True) if is_float], *vectors
    tangent = like(point, 90)

    def along(g):
        return lambda x: jax.jvp(g, (x,), (tangent,))[1]

    def inner(g):
        def function(x):
            products = jax.tree.map(lambda a, b: jnp.sum(a * b), g(x), tangent)
            return sum(jax.tree.leaves(products))

        return function

    f = of_floats(by_operator)
    forward_over_reverse = along(jax.grad(f))
    reverse_over_forward = jax.grad(along(f))
    reverse_over_reverse = jax.grad(inner(jax.grad(f)))
    orders = forward_over_reverse, reverse_over_forward, reverse_over_reverse
    actual = compiled(lambda x: [order(x) for order in orders])(point)
    desired = compiled(along(jax.grad(of_floats(by_matrix))))(point)
    assert_within(actual, [desired] * 3, 1e4)


def test_derivatives_with_respect_to_the_operator_itself():
    """Integer leaves have float0 tangents, in both modes."""
    found, A, dense = case("prepared")
    X = block(N)
    gradient = jax.grad(lambda A: jnp.sum(A.matmat(X) ** 2), allow_int=True)(A)
    assert isinstance(gradient, operators.Sparse)
    assert gradient.rows.dtype == jax.dtypes.float0
    desired = 2 * (dense @ double(X)) @ double(X).T
    inside = (ROWS < M) & (COLUMNS < N)
    desired = np.where(inside, desired[ROWS * inside, COLUMNS * inside], 0)
    assert_within(gradient.data, desired, 100)

    def tangent(x):
        if jnp.issubdtype(x.dtype, jnp.integer):
            return np.zeros(x.shape, jax.dtypes.float0)
        return jnp.ones_like(x)

    _, AX_dot = jax.jvp(lambda A: A.matmat(X), (A,), (jax.tree.map(tangent, A),))
    assert_within(AX_dot, double(found.dense(jnp.ones(ROWS.size))) @ double(X), 100)


# ---------------------------------------------------------------------------------------- sparse


def bcoo(dtype=np.float64, seed=0):
    data = jnp.asarray(gaussian((ROWS.size,), dtype, seed))
    return sparse.BCOO((data, jnp.stack([ROWS, COLUMNS], axis=1)), shape=(M, N))


@pytest.mark.x32
@pytest.mark.parametrize("columns", [1, 9])
@pytest.mark.parametrize("traced", [False, True])
def test_sparse_formats(traced, columns):
    a = bcoo(np.float32)
    sorted_ = a.sort_indices()
    summed = a.sum_duplicates()
    X = block(N, np.float32, columns=columns)
    Y = block(M, np.float32, columns=columns)
    dense = double(sparse_dense(a.data))
    desired = dense, dense @ double(X), dense.T @ double(Y)
    for matrix in (a, sorted_, summed, sparse.BCSR.from_bcoo(summed)):
        known = as_operator(matrix)

        def products(A):
            A = (as_operator(A) if traced else known).prepared()  # noqa: B023
            assert isinstance(A, operators.Sparse)
            assert A.by_row is not None
            return A.to_dense(), A.matmat(X), A.rmatmat(Y)

        assert_within(compiled(products)(matrix), desired, 100)


@pytest.mark.x32
def test_sparse_operators_are_ordered_where_their_indices_are_known():
    a = bcoo(np.float32)
    assert as_operator(a).by_row is not None
    assert as_operator(a).prepared().by_row is not None
    one = sparse.BCOO.fromdense(jnp.eye(3, dtype=np.float32), nse=5)  # in order, and two that pad
    assert as_operator(one).by_row.permutation is None
    assert compiled(as_operator)(a).by_row is None
    assert compiled(as_operator)(as_operator(a)).by_row is not None
    within = jax.make_jaxpr(lambda data: as_operator(sparse.BCOO((data, a.indices), shape=a.shape)))
    assert "sort" not in [name for name, _ in equations(within(a.data))]


@pytest.mark.x32
def test_sparse_without_nonzeros():
    empty = sparse.BCOO((jnp.zeros(0, np.float32), jnp.zeros((0, 2), np.int32)), shape=(M, N))
    for A in (as_operator(empty), compiled(as_operator)(empty)):
        assert_within(A.matmat(block(N, np.float32)), np.zeros((M, L)), 0)
        assert A.matmat(block(N, np.float32, columns=0)).shape == (M, 0)
        assert_within(A.rmatmat(block(M, np.float32)), np.zeros((N, L)), 0)


def test_the_gradient_of_a_sparse_matrix_is_sparse():
    a = bcoo()
    X = block(N)

    def loss(a):
        return jnp.sum(jnp.sin(as_operator(a).matmat(X)))

    desired = jax.grad(lambda data: jnp.sum(jnp.sin(sparse_dense(data) @ X)))(a.data)
    for gradient in (sparse.grad(loss)(a), compiled(sparse.grad(loss))(a)):
        assert isinstance(gradient, sparse.BCOO)
        np.testing.assert_array_equal(gradient.indices, a.indices)
        assert_within(gradient.data, desired, 100)


def test_sparse_maps_over_values_and_over_vectors():
    A = as_operator(bcoo())
    data = jnp.asarray(gaussian((4, ROWS.size)))
    X = jnp.asarray(gaussian((4, 6, N, L), seed=1))

    def multiply(data, X):
        op = operators.Sparse(data, A.rows, A.columns, A.size, A.by_row, A.by_column)
        return jnp.sin(op.matmat(X)), op

    def loss(data, X):
        return jnp.sum(multiply(data, X)[0] ** 2)

    nested = jax.vmap(jax.vmap(jax.value_and_grad(loss, (0, 1)), in_axes=(None, 0)))
    dense = jax.vmap(
        jax.vmap(
            jax.value_and_grad(lambda d, X: jnp.sum(jnp.sin(sparse_dense(d) @ X) ** 2), (0, 1)),
            in_axes=(None, 0),
        )
    )
    assert_within(compiled(nested)(data, X), compiled(dense)(data, X), 1000)
    other = compiled(
        jax.vmap(
            lambda rows: (
                operators.Sparse(A.data, rows, A.columns, A.size).prepared().matmat(X[0, 0])
            )
        )
    )
    rows = jnp.stack([ROWS, (ROWS + 1) % (M + 1)])
    desired = [jnp.zeros((M, N)).at[r, COLUMNS].add(A.data, mode="drop") @ X[0, 0] for r in rows]
    assert_within(other(rows), jnp.stack(desired), 100)


@pytest.mark.x32
def test_no_dense_array_in_products_of_a_large_sparse_matrix_or_their_derivatives():
    size, nse, l = 50_000, 200_000, 4
    rng = np.random.default_rng(0)
    indices = jnp.asarray(rng.integers(0, size, (nse, 2)), np.int32)
    A = as_operator(sparse.BCOO((jnp.ones(nse, np.float32), indices), shape=(size, size)))
    X = jnp.ones((size, l), np.float32)

    def loss(A, X):
        return jnp.sum(jnp.sin(A.matmat(X)) ** 2) + jnp.sum(A.rmatmat(X) ** 2)

    def second(A, X):  # reverse over reverse
        return jnp.sum(jax.grad(loss, allow_int=True)(A, X).data ** 2)

    for function in (loss, jax.grad(loss, allow_int=True), jax.grad(second, allow_int=True)):
        memory = jax.jit(function).lower(A, X).compile().memory_analysis()
        # A few vectors of nse or blocks of l vectors, 1 MB or less each; a dense array has 10 GB.
        assert memory.temp_size_in_bytes < 40e6


@pytest.mark.x32
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_platform_is_chosen_when_a_program_is_lowered(platform):
    def loss(A, X):
        return jnp.sum(A.matmat(X) ** 2) + jnp.sum(A.rmatmat(A.matmat(X)))

    traced = jax.jit(jax.grad(loss, allow_int=True)).trace(
        as_operator(bcoo(np.float32)), block(N, np.float32)
    )
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("csr_sparse_dense" in text) == (platform == "cpu")


@pytest.mark.x32
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", ["dense", "prepared", "low_rank"])
def test_sharded_blocks(name, kind):
    _, A, dense = case(name, np.float32)
    mesh = jax.make_mesh((2,), ("i",), axis_types=(kind,), devices=jax.devices()[:2])
    X = block(N, np.float32, columns=4)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(X, NamedSharding(mesh, PartitionSpec(None, "i")))
        actual = compiled(lambda A, X: (A.matmat(X), jax.grad(lambda X: jnp.sum(A.matmat(X)))(X)))(
            A, sharded
        )
    assert_within(actual, (dense @ double(X), dense.T @ np.ones((M, 4))), 100)


@pytest.mark.x32
def test_scipy_sparse_matrices_move_to_the_device():
    a = scipy.sparse.random_array((M, N), density=0.4, rng=np.random.default_rng(0))
    for matrix in (a.tocsr(), a.tocsc(), a.tocoo(), scipy.sparse.csr_matrix(a), a.astype(int)):
        A = as_operator(matrix)
        assert isinstance(A, operators.Sparse)
        assert_within(A.to_dense(), matrix.toarray(), 10)
        check_adjoint(A)


# ------------------------------------------------------------------------- functions, other kinds


@pytest.mark.parametrize("dtype", [FLOAT32, COMPLEX128])
def test_scipy_linear_operators_run_on_the_host(dtype):
    a = gaussian((M, N), dtype)
    A = as_operator(scipy.sparse.linalg.aslinearoperator(a))
    assert isinstance(A, operators.Host)
    assert A.dtype == dtype
    X, Y = block(N, dtype), block(M, dtype)
    assert_within(
        compiled(lambda A, X, Y: (A.matmat(X), A.rmatmat(Y)))(A, X, Y),
        (double(a) @ double(X), adjoint(double(a)) @ double(Y)),
        100,
    )
    assert_within(jax.vmap(A.matmat)(jnp.stack([X, 2 * X])), np.stack([a @ X, 2 * a @ X]), 100)
    check_adjoint(A)
    gradient = jax.grad(lambda X: jnp.sum(jnp.abs(A.matmat(X)) ** 2))(X)
    desired = 2 * np.conj(adjoint(double(a)) @ double(a) @ double(X))
    assert_within(gradient, desired, 100)
    assert jax.tree.structure(A) == jax.tree.structure(as_operator(A.held.value))


def test_other_objects_of_numpys_world():
    a = gaussian((M, N), np.complex128)

    class Vectors:
        shape, dtype = a.shape, a.dtype

        def matvec(self, x):
            return a @ x

        def rmatvec(self, y):
            return adjoint(a) @ y

    class Matrix:
        def __init__(self, a):
            self.a, self.shape, self.dtype, self.T = a, a.shape, a.dtype, None

        def __matmul__(self, X):
            return self.a @ X

    matrix = Matrix(a)
    matrix.T = Matrix(a.T)
    for A in (as_operator(Vectors()), as_operator(matrix)):
        assert_within(A.to_dense(), a, 10)
        check_adjoint(A)


def test_lineax_operators():
    lx = pytest.importorskip("lineax")
    a = jnp.asarray(gaussian((M, N)))
    function = lx.FunctionLinearOperator(lambda x: a @ x, jax.ShapeDtypeStruct((N,), a.dtype))
    for given in (lx.MatrixLinearOperator(a), function, lx.MatrixLinearOperator(a) * 1.0):
        A = as_operator(given)
        assert A.shape == (M, N)
        assert_within(A.to_dense(), a, 10)
        check_adjoint(A)
    A = as_operator(lx.MatrixLinearOperator(a))
    gradient = jax.grad(lambda A: jnp.sum(A.matmat(jnp.ones((N, 1)))))(A)
    assert_within(jax.tree.leaves(gradient), [np.ones((M, N))], 10)
    with pytest.raises(TypeError, match="as_operator: `a` must act on a single array, got input"):
        as_operator(lx.JacobianLinearOperator(lambda x, _: {"y": x["x"]}, {"x": jnp.ones(2)}))


def test_functions():
    w = jnp.asarray(gaussian((2, N), np.float32))
    A = as_operator(lambda w, x: w @ x.ravel(), in_shape=(1, N), params=w)
    assert A.dtype == np.float32  # that of the parameters
    assert_within(A.to_dense(), w, 10)
    assert as_operator(jnp.flip, in_shape=3).dtype == np.float64
    one, other = (as_operator(jnp.flip, in_shape=(3,)) for _ in range(2))
    assert jax.tree.structure(one) == jax.tree.structure(other)  # no second program
    complex_ = as_operator(lambda w, x: w @ x, in_shape=N, params=lax.complex(w, w))
    check_adjoint(check_linear(complex_))


def test_products_in_functions_run_at_the_highest_precision():
    w = jnp.ones((2, N))
    for A in (
        as_operator(lambda w, x: w @ x, in_shape=N, params=w),
        operators.Jacobian(lambda w, x: jnp.tanh(w @ x), w, jnp.ones(N)),
    ):
        for product, rows in ((A.matmat, N), (A.rmatmat, 2)):
            text = str(jax.make_jaxpr(product)(jnp.ones((rows, 1))))
            assert "HIGHEST" in text
            assert "precision=None" not in text


def test_parameters_of_a_function_in_an_operator_of_operators():
    def loss(params, sign):
        A = as_operator(lambda w, x: w * x, in_shape=N, params=params["w"])
        B = operators.Centered.of_columns(operators.Dense(params["a"]))
        return jnp.sum((sign * B @ A.H).matmat(jnp.ones((N, 1))) ** 2)

    params = {"w": jnp.asarray(gaussian((N,))), "a": jnp.asarray(gaussian((M, N)))}
    centred = lambda a: a - jnp.mean(a, axis=0, keepdims=True)  # noqa: E731
    desired = jax.grad(lambda p: jnp.sum((centred(p["a"]) @ p["w"]) ** 2))(params)
    assert_within(jax.grad(loss)(params, -1.0), desired, 100)


# ----------------------------------------------------------------------------------- convolutions

CONVOLUTIONS = [
    dict(kernel=(3, 2, 4), input_shape=(7, 2)),
    dict(kernel=(4, 2, 3), input_shape=(7, 2), strides=2, padding="VALID"),
    dict(kernel=(4, 1, 2), input_shape=(6, 1), padding="CIRCULAR", strides=3),
    dict(kernel=(3, 1, 4), input_shape=(8, 2), padding="CIRCULAR", dilation=2, groups=2),
    dict(kernel=(5, 1, 1), input_shape=(3, 1), padding="CIRCULAR"),
    dict(kernel=(3, 1, 2), input_shape=(5, 1), padding=((0, 3),), dilation=2),
    dict(kernel=(3, 3, 2, 3), input_shape=(5, 4, 2)),
    dict(kernel=(3, 2, 2, 2), input_shape=(5, 4, 2), strides=(2, 1), padding="VALID"),
    dict(kernel=(2, 3, 1, 4), input_shape=(4, 5, 2), groups=2, strides=2, dilation=(1, 2)),
    dict(kernel=(3, 3, 1, 1), input_shape=(4, 5, 1), padding="CIRCULAR", strides=(1, 2)),
    dict(kernel=(2, 2, 1, 2), input_shape=(3, 3, 1), padding=((1, 0), (2, 1))),
    dict(kernel=(2, 2, 2, 1, 2), input_shape=(3, 4, 3, 1), strides=(1, 2, 1)),
    dict(kernel=(2, 2, 1, 1, 2), input_shape=(3, 4, 3, 2), groups=2, padding="CIRCULAR"),
]


@pytest.mark.x32
@pytest.mark.parametrize("number", range(len(CONVOLUTIONS)))
def test_convolutions_against_explicit_loops(number):
    options = dict(CONVOLUTIONS[number])
    kernel = gaussian(options.pop("kernel"), np.float32, number)
    desired = loops(kernel.astype(np.float64), **options)
    A = operators.Convolution(jnp.asarray(kernel), **options)
    m, n = desired.shape
    assert A.shape == (m, n)
    X, Y = block(n, np.float32), block(m, np.float32)
    products = compiled(lambda A, X, Y: (A.to_dense(), A.matmat(X), A.rmatmat(Y)))(A, X, Y)
    assert_within(products, (desired, desired @ double(X), desired.T @ double(Y)), 100)
    # One convolution for the whole block.
    found = [name for name, _ in equations(jax.make_jaxpr(A.rmatmat)(Y))]
    assert found.count("conv_general_dilated") == 1


@pytest.mark.x32
def test_layouts_of_convolutions():
    kernel = gaussian((3, 2, 2, 4), np.float32)
    options = dict(strides=(1, 2), padding=((1, 1), (0, 2)))
    last = operators.Convolution(jnp.asarray(kernel), (5, 6, 2), **options)
    assert last.output_shape == (5, 4, 4)
    first = operators.Convolution(
        jnp.asarray(kernel.transpose(3, 2, 0, 1)),
        (2, 5, 6),
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
        **options,
    )
    assert first.output_shape == (4, 5, 4)
    dense = np.asarray(last.to_dense()).reshape(5, 4, 4, 5, 6, 2)
    desired = dense.transpose(2, 0, 1, 5, 3, 4).reshape(last.shape)
    assert_within(first.to_dense(), desired, 20)
    batch_last = operators.Convolution(
        jnp.asarray(kernel), (5, 6, 2), dimension_numbers=("HWCN", "HWIO", "NCHW"), **options
    )
    assert batch_last.output_shape == (4, 5, 4)
    X, Y = block(60, np.float32), block(80, np.float32)
    for A in (first, batch_last):
        AX, AHY = compiled(lambda A: (A.matmat(X), A.rmatmat(Y)))(A)
        assert_within(double(Y).T @ double(AX), double(AHY).T @ double(X), 1e12)
    equal = operators.Convolution(jnp.asarray(kernel), [5, 6, 2], **options)
    assert jax.tree.structure(equal) == jax.tree.structure(last)
    one_pad = operators.Convolution(jnp.asarray(kernel), (5, 6, 2), padding=1)
    assert one_pad.output_shape == (5, 7, 4)


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
def test_complex_convolutions(padding):
    kernel = gaussian((3, 1, 2), np.complex128)
    A = operators.Convolution(jnp.asarray(kernel), (5, 2), groups=2, strides=2, padding=padding)
    desired = loops(kernel, (5, 2), groups=2, strides=2, padding=padding)
    dense, other = compiled(lambda A: (A.to_dense(), A.H.to_dense()))(A)
    assert_within((dense, other), (desired, adjoint(desired)), 20)


# -------------------------------------------------------------------------------------- bad input

A75 = operators.Dense(jnp.ones((M, N)))
ONES = jnp.ones(3)
KERNEL = jnp.ones((3, 3, 2, 4))
conv = functools.partial(operators.Convolution, KERNEL, (6, 6, 2))


class Wrong(operators.Operator):
    """A map whose first output comes twice, which the adjoint does not know."""

    shape, dtype = (3, 2), np.dtype(np.complex128)

    def __init__(self, kind):
        self.kind = kind

    def matmat(self, X):
        if self.kind == "normalised":
            X = X / jnp.max(jnp.abs(X)).astype(X.dtype)
        if self.kind == "one column":
            X = X * X.shape[1]
        if self.kind == "conjugate":
            X = X * jnp.asarray(1j)
        return jnp.concatenate([X, X[:1]])

    def rmatmat(self, Y):
        if self.kind == "shape":
            return Y[0]
        if self.kind == "conjugate":
            Y = Y * jnp.asarray(1j)
        return Y[:2]


BAD = [
    (TypeError, "as_operator: `a` must be an array, .* got list", lambda: as_operator([[1.0]])),
    (TypeError, "as_operator: .* got str 'x'", lambda: as_operator("x")),
    (TypeError, "or a function with its `in_shape`, got", lambda: as_operator(jnp.flip)),
    (ValueError, r"as_operator: .* \(m, n\), got \(2, 2, 2\)", lambda: as_operator(
        jnp.ones((2, 2, 2)))),
    (ValueError, "Sparse: .* n_batch=1", lambda: as_operator(
        sparse.BCOO.fromdense(jnp.ones((2, 2, 2)), n_batch=1))),
    (ValueError, "Sparse: `rows` must have the shape of `data`", lambda: operators.Sparse(
        ONES, jnp.arange(2), jnp.arange(3), (3, 3))),
    (TypeError, "Sparse: `columns` must be an array of integers", lambda: operators.Sparse(
        ONES, jnp.arange(3), ONES, (3, 3))),
    (ValueError, "Dense: `a` must have 2 axes, got", lambda: operators.Dense(ONES)),
    (TypeError, "Dense: `a` must be an array, got list", lambda: operators.Dense([[1.0]])),
    (ValueError, r"LowRank: .* got \(7, 5\), \(3,\), \(5, 7\)", lambda: operators.LowRank(
        A75.a, ONES, A75.a.T)),
    (ValueError, r"Centered: `mean` must have shape \(5,\), got \(3,\)",
     lambda: operators.Centered(A75, ONES)),
    (TypeError, "Centered: operands must be operators", lambda: operators.Centered(A75.a, ONES)),
    (TypeError, "Centered.of_columns: operands must be operators",
     lambda: operators.Centered.of_columns(A75.a)),
    (ValueError, r"Dense @: `X` must have shape \(5,\) or \(5, l\), got \(3,\)",
     lambda: A75 @ ONES),
    (TypeError, "Dense @: `X` must be an array, got list", lambda: A75 @ [1.0]),
    (ValueError, r"@ Dense: `Y` must have shape \(7,\) or \(l, 7\), got \(3,\)",
     lambda: ONES @ A75),
    (ValueError, r"@ Dense: `Y` .* got \(3,\)", lambda: np.ones(3) @ A75),
    (TypeError, "Sum: operands must be operators, got ArrayImpl", lambda: A75 + A75.a),
    (TypeError, "Sum: .*wrap it with operators.as_operator", lambda: A75.a + A75),
    (TypeError, "Sum: operands must be operators, got ndarray", lambda: np.ones((7, 5)) - A75),
    (TypeError, "Sum: operands must be operators, got int 1", lambda: A75 - 1),
    (ValueError, r"Sum: `right` must have shape \(7, 5\), got \(5, 7\)", lambda: A75 + A75.T),
    (ValueError, r"Product: `right` must have 5 rows, got \(7, 5\)", lambda: A75 @ A75),
    (TypeError, "Scaled: `scalar` must be a number, got an operator", lambda: A75 * A75),
    (ValueError, r"Scaled: `scalar` must have 0 axes, got shape \(3,\)", lambda: A75 * ONES),
    (TypeError, "Transpose: operands must be operators", lambda: operators.Transpose(A75.a)),
    (TypeError, "Function: `fn` must be a function, got int 3", lambda: operators.Function(
        3, (), (2,))),
    (TypeError, "Function: `fn` must return one array", lambda: as_operator(
        lambda x: {"y": x}, in_shape=(2,))),
    (TypeError, "Function: `in_shape` must be an int", lambda: as_operator(
        jnp.flip, in_shape=(2.0,))),
    (TypeError, "Function: `in_dtype` must be floating", lambda: as_operator(
        jnp.flip, in_shape=2, in_dtype=int)),
    (ValueError, "Function: `in_dtype` must be complex where `fn` returns complex128",
     lambda: as_operator(lambda x: lax.complex(x, x), in_shape=(2,))),
    (ValueError, "Function: `fn` must be linear in x", lambda: as_operator(
        jnp.sin, in_shape=(2,)).rmatmat(jnp.ones((2, 1)))),
    (ValueError, "Function: `fn` must be linear in x", lambda: as_operator(
        jnp.square, in_shape=(2,)).rmatmat(jnp.ones((2, 1)))),
    (TypeError, "Jacobian: `x` must hold floating-point", lambda: operators.Jacobian(
        lambda _, x: x, (), jnp.arange(3))),
    (ValueError, "Jacobian: `x` must be complex where", lambda: operators.Jacobian(
        lambda _, x: lax.complex(x, x), (), ONES)),
    (ValueError, "check_linear: A must be linear, got", lambda: check_linear(
        as_operator(lambda x: x + 1, in_shape=(4,)))),
    (ValueError, "check_linear: A must be linear", lambda: check_linear(
        as_operator(lambda x: x * jnp.abs(x), in_shape=(4,)))),
    (ValueError, "check_linear: A must be linear", lambda: check_linear(
        as_operator(lambda x: x * jnp.nan, in_shape=(4,)))),
    (ValueError, "check_linear: A must be linear|treat each column", lambda: check_linear(
        Wrong("normalised"))),
    (ValueError, "check_linear: matmat must treat each column by itself", lambda: check_linear(
        Wrong("one column"))),
    (ValueError, r"check_adjoint: rmatmat must return shape \(2, 3\), got",
     lambda: check_adjoint(Wrong("shape"))),
    (ValueError, "check_adjoint: rmatmat must be the adjoint", lambda: check_adjoint(
        Wrong("values"))),
    (ValueError, "check_adjoint: .*complex operator it conjugates", lambda: check_adjoint(
        Wrong("conjugate"))),
    (TypeError, "check_linear: `op` must be an operator", lambda: check_linear(A75.a)),
    (TypeError, "check_adjoint: must be called outside of jit", lambda: compiled(
        lambda A: check_adjoint(A).matmat(jnp.ones((N, 1))))(A75)),
    (TypeError, "Operator must define matmat", lambda: operators.Operator().matmat(ONES)),
    (ValueError, "Convolution: `kernel` must have 1 to 3 spatial axes", lambda:
     operators.Convolution(A75.a, (3, 2))),
    (ValueError, r"Convolution: `input_shape` must hold 2 spatial sizes .* got \(1, 6, 6, 2\)",
     lambda: operators.Convolution(KERNEL, (1, 6, 6, 2))),
    (ValueError, "Convolution: `input_shape` must have 2 channels, .* got 3",
     lambda: operators.Convolution(KERNEL, (6, 6, 3))),
    (ValueError, "`input_shape` with its padding must be no smaller", lambda:
     operators.Convolution(KERNEL, (2, 6, 2), padding="VALID")),
    (ValueError, "`groups` must divide the 4 output channels", lambda:
     operators.Convolution(KERNEL, (6, 6, 6), groups=3)),
    (ValueError, "Convolution: `padding` must be one of 'SAME', 'VALID', 'CIRCULAR', got str",
     lambda: conv(padding="REFLECT")),
    (ValueError, "Convolution: `padding` must be one of SAME, .*for each of 2 spatial axes",
     lambda: conv(padding=((1, 1),))),
    (ValueError, "Convolution: `padding` must satisfy", lambda: conv(padding=-1)),
    (ValueError, "Convolution: `strides` must be an int, or 2 of them", lambda: conv(
        strides=(1, 2, 3))),
    (ValueError, "Convolution: `dilation` must satisfy 1 <=", lambda: conv(dilation=0)),
    (TypeError, "Convolution: `strides` must be an int", lambda: conv(strides=1.5)),
    (ValueError, "`dimension_numbers` must be three layouts of 4 axes such as", lambda: conv(
        dimension_numbers=("NWC", "WIO", "NWC"))),
    (ValueError, "`dimension_numbers` must be three layouts", lambda: conv(
        dimension_numbers="NHWC")),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input(number):
    error, message, call = BAD[number]
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value).split(": ", 2)[0]
