"""Compression: the dense optimum in every metric, the best ranks, the budget, what weights see.

Oracles: NumPy in double precision (eigenvalues of C W K W^H for the least error, written without
roots), brute force over all ranks, inputs recorded by hand-written models, finite differences.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsvd
from jaxsvd import compress
from jaxsvd.operators import LowRank
from tests.helpers import (
    FLOAT32,
    FLOAT64,
    adjoint,
    assert_same_bits,
    assert_within,
    double,
    eps,
    finite_differences,
    gaussian,
    with_values,
)

KEY = jax.random.key(0)
M, N = 9, 7


# ----------------------------------------------------------------------------------- factorize


def gram(size, samples, dtype, seed):
    X = gaussian((samples, size), dtype, seed) * 2.0 ** np.arange(size)[None, ::-1].astype(dtype)
    return adjoint(X) @ X / 2**size


def metric(kind, size, dtype, seed):
    """A metric of a kind, and its matrix."""
    if kind == "none":
        return None, np.eye(size)
    if kind == "vector":
        d = np.linspace(0, 3, size) ** 2  # one weight is zero
        return d, np.diag(d)
    if kind in ("wide factor", "tall factor"):
        F = gaussian((4 if kind == "wide factor" else 30, size), dtype, seed)
        return compress.Factor(jnp.asarray(F)), adjoint(F) @ F
    C = gram(size, 40 if kind == "gram" else 5, dtype, seed)
    return C, C


KINDS = ["none", "vector", "wide factor", "tall factor", "gram", "singular"]
PAIRS = [
    *((kind, "none") for kind in KINDS),
    *(("none", kind) for kind in KINDS[1:]),
    *itertools.product(["gram", "singular", "vector"], repeat=2),
]


def weighted(C, D, K):
    """tr(D^H C D K)."""
    return np.trace(adjoint(D) @ C @ D @ K).real


CASES = [
    *(pytest.param(*pair, np.float64, id="-".join(pair)) for pair in PAIRS),
    pytest.param("gram", "none", np.float32, marks=pytest.mark.x32, id="float32"),
    pytest.param("singular", "wide factor", np.float32, marks=pytest.mark.x32, id="two, float32"),
    pytest.param("none", "singular", np.complex128, id="complex128"),
    pytest.param("gram", "tall factor", np.complex128, id="two, complex128"),
]


@pytest.mark.parametrize(("inner", "outer", "dtype"), CASES)
def test_factorize_is_the_dense_optimum(inner, outer, dtype):
    W = gaussian((M, N), dtype)
    given, C = metric(inner, M, dtype, 1)
    also, K = metric(outer, N, dtype, 2)
    C, K, exact = double(C), double(K), double(W)
    squares = np.sort(np.linalg.eigvals(C @ exact @ K @ adjoint(exact)).real)[::-1]
    for rank in (2, 5):
        found = compress.factorize(jnp.asarray(W), rank, given, also)
        assert found.U.shape == (M, rank)
        assert found.U.dtype == W.dtype
        lost = weighted(C, exact - double(found.to_dense()), K)
        assert abs(lost - max(squares[rank:].sum(), 0)) <= 2000 * eps(dtype) * squares.sum()


def test_factorize_is_the_only_optimum():
    W, C = gaussian((M, N)), gram(M, 40, np.float64, 1)
    F = np.linalg.cholesky(C).T
    U, s, Vh = np.linalg.svd(F @ W, full_matrices=False)
    wanted = np.linalg.solve(F, (U[:, :3] * s[:3]) @ Vh[:3])
    found = compress.factorize(jnp.asarray(W), 3, C)
    assert_within(found.to_dense(), wanted, 1e4)
    assert_within(jnp.linalg.norm(found.U, axis=0), np.ones(3), 10)
    # Outputs of the two on inputs of that Gram matrix, transposed: metrics of the columns.
    assert_within(compress.factorize(jnp.asarray(W.T), 3, None, C).to_dense(), wanted.T, 1e4)


def test_factorize_keeps_what_no_input_sees():
    # At the rank of C the change vanishes where C sees, and W itself comes back at full rank.
    W, C = gaussian((M, N)), gram(M, 3, np.float64, 1)
    K = gram(N, 4, np.float64, 2)
    assert weighted(C, W - double(compress.factorize(W, 3, C).to_dense()), np.eye(N)) < 1e-12
    found = double(compress.factorize(W, 3, C, K).to_dense())
    assert np.all(np.isfinite(found))
    assert weighted(C, W - found, K) < 1e-12
    zero = compress.factorize(jnp.zeros((M, N)), 2, C, K)
    assert_same_bits(zero.to_dense(), jnp.zeros((M, N)))


def test_factorize_stacked_jitted_and_halved():
    W = jnp.asarray(gaussian((2, M, N)))
    C = np.stack([gram(M, 5, np.float64, seed) for seed in (1, 2)])
    found = jax.jit(lambda W, C: compress.factorize(W, 2, C))(W, jnp.asarray(C))
    each = [compress.factorize(W[i], 2, C[i]).to_dense() for i in range(2)]
    assert_within(compress.densify(found), jnp.stack(each), 1e5)
    for narrow in (jnp.bfloat16, jnp.float8_e4m3fn):
        half = compress.factorize((100 * W[0]).astype(narrow), 2)
        assert (half.U.dtype, half.s.dtype, half.Vh.dtype) == (jnp.bfloat16,) * 3
        assert compress.densify(half).dtype == jnp.bfloat16
        assert bool(jnp.all(jnp.isfinite(half.s)))


def test_factorize_at_random():
    values = np.arange(1, 281) ** -0.5
    W = with_values(values, 300, 280, np.float32)
    best = np.sqrt(np.sum(values[20:] ** 2))
    for method, bound in (("auto", 1.01), ("randomized", 1.01), ("full", 1.0001)):
        found = compress.factorize(jnp.asarray(W), 20, method=method)
        assert best * 0.9999 < np.linalg.norm(double(W) - double(found.to_dense())) < bound * best


# ------------------------------------------------------------------------------------ allocate


def choices(spectrum, shape, least, extra):
    """All (cost, error, rank) of one weight."""
    m, n = shape[-2:]
    copies = int(np.prod(shape[:-2]))
    squares = np.sum(np.reshape(np.square(spectrum), (copies, -1)), axis=0)
    found = [(copies * m * n, 0.0, None)]
    for rank in range(least, min(m, n) + 1):
        if rank * (m + n + extra) < m * n:
            found.append((copies * rank * (m + n + extra), squares[rank:].sum(), rank))
    return found


def test_allocate_against_brute_force():
    rng = np.random.default_rng(0)
    for trial in range(150):
        count, least, extra = int(rng.integers(1, 5)), int(rng.integers(0, 3)), int(rng.integers(2))
        shapes = [tuple(int(x) for x in rng.integers(2, 10, 2)) for _ in range(count)]
        shapes = [(3, *shape) if rng.random() < 0.2 else shape for shape in shapes]
        spectra = [
            np.sort(rng.exponential(size=(*s[:-2], min(s[-2:]))) ** rng.integers(4))[..., ::-1]
            for s in shapes
        ]
        all_choices = [choices(*pair, least, extra) for pair in zip(spectra, shapes, strict=True)]
        low = sum(min(cost for cost, *_ in some) for some in all_choices)
        budget = int(rng.integers(low, sum(some[0][0] for some in all_choices) + 1))
        best = min(
            sum(error for _, error, _ in some)
            for some in itertools.product(*all_choices)
            if sum(cost for cost, *_ in some) <= budget
        )
        found = compress.allocate(spectra, shapes, budget, min_rank=least, extra=extra)
        made = [
            next(one for one in some if one[2] == rank)
            for some, rank in zip(all_choices, found.ranks, strict=True)
        ]
        assert found.params == sum(cost for cost, *_ in made) <= budget, trial
        assert found.error == pytest.approx(sum(error for _, error, _ in made), rel=1e-9)
        assert found.error == pytest.approx(best, rel=1e-9, abs=1e-12), trial
        assert found.bound == pytest.approx(found.error, rel=1e-9, abs=1e-12)
        if low > 0:
            with pytest.raises(ValueError, match=f"at least {low}, the smallest possible"):
                compress.allocate(spectra, shapes, low - 1, min_rank=least, extra=extra)


def test_allocate_of_a_large_model():
    rng = np.random.default_rng(1)
    shapes = {f"{i}": tuple(int(x) for x in rng.choice([256, 320, 768], 2)) for i in range(40)}
    spectra = {
        key: rng.exponential() * np.arange(1, min(s) + 1) ** -rng.uniform(0.3, 1)
        for key, s in shapes.items()
    }
    total = sum(m * n for m, n in shapes.values())
    for share in (0.2, 0.5, 0.8):
        found = compress.allocate(spectra, shapes, int(share * total))
        assert set(found.ranks) == set(shapes)
        assert 0.99 * share * total < found.params <= share * total
        # Sums of the same squares in another order, where the bound is reached.
        assert (1 - 1e-14) * found.bound <= found.error <= 1.01 * found.bound


# ------------------------------------------------------------------------------------- budgets


def model(dtype=np.float64):
    """A matrix, a stack, a convolution, one of rank one, and leaves that are not selected."""
    return {
        "dense": {"kernel": jnp.asarray(gaussian((24, 20), dtype)), "bias": jnp.ones(20, dtype)},
        "blocks": jnp.asarray(gaussian((2, 16, 12), dtype, 1)),
        "conv": {"kernel": jnp.asarray(gaussian((3, 3, 4, 8), dtype, 2))},
        "one": {"kernel": jnp.asarray(with_values([3.0], 10, 10, dtype, 3))},
        "steps": jnp.zeros((), jnp.int32),
    }


WHERE, AXES = "kernel|blocks", {"blocks": (1, 2), "conv": ((0, 1, 2), 3)}


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, pytest.param(jnp.bfloat16, id="bfloat16")])
def test_to_budget(dtype):
    params = model(dtype)
    for budget, given in (
        (0.35, {}),
        (0.6, {}),
        (700, {}),
        (0.5, {"allocation": "uniform"}),
        (0.5, {"relative": True}),
        (0.9, {"min_rank": 3}),
    ):
        small, report = compress.to_budget(params, budget, None, WHERE, AXES, **given)
        allowed = budget if isinstance(budget, int) else int(budget * count(params))
        assert count(small) == report.after <= report.budget == allowed
        assert report.before == count(params)
        again = compress.densify(small)
        before, after = jax.tree.leaves(params), jax.tree.leaves(again)
        assert jax.tree.structure(again) == jax.tree.structure(params)
        assert [(x.shape, x.dtype) for x in before] == [(x.shape, x.dtype) for x in after]
        named = dict(zip([path for path, _ in jaxsvd._leaves.paths(params)], before, strict=True))
        new = dict(zip(named, after, strict=True))
        for leaf in report.leaves:
            W, V = double(named[leaf.name].astype(float)), double(new[leaf.name].astype(float))
            error = np.linalg.norm(W - V) / np.linalg.norm(W)
            assert abs(error - leaf.error) < max(1e-6, 2 * eps(dtype))
            if leaf.rank is not None:
                matrix = V.reshape(36, 8) if leaf.name == "conv/kernel" else V
                values = np.linalg.svd(matrix, compute_uv=False)
                assert np.all(values[..., leaf.rank :] < 4 * eps(dtype) * values[..., :1].max())
            else:
                assert_same_bits(named[leaf.name], new[leaf.name])


def test_to_budget_is_the_best_within_it():
    params = {
        "a": jnp.asarray(gaussian((10, 9))),
        "b": 0.3 * jnp.asarray(gaussian((8, 12), seed=1)),
    }
    values = [np.linalg.svd(double(W), compute_uv=False) for W in params.values()]
    some = [choices(s, W.shape, 1, 1) for s, W in zip(values, params.values(), strict=True)]
    for budget in (60, 90, 120, 150):
        best = min(a[1] + b[1] for a, b in itertools.product(*some) if a[0] + b[0] <= budget)
        small, _ = compress.to_budget(params, budget)
        lost = sum(
            np.sum((double(x) - double(y)) ** 2)
            for x, y in zip(
                jax.tree.leaves(params), jax.tree.leaves(compress.densify(small)), strict=True
            )
        )
        assert lost == pytest.approx(best)


def test_the_parts_of_the_result():
    params, calls = model(), []
    small, report = compress.to_budget(
        params, 0.3, None, WHERE, AXES, progress=lambda *given: calls.append(given)
    )
    paths = ["blocks", "conv/kernel", "dense/kernel", "one/kernel"]
    assert calls == [(path, i + 1, 4) for i, path in enumerate(paths)]
    assert isinstance(small["dense"]["kernel"], LowRank)
    assert isinstance(small["conv"]["kernel"], compress.Folded)
    assert report.leaves[3].rank == 1
    assert report.leaves[3].error < 1e-7
    lines = str(report).splitlines()
    assert lines[1].split()[:2] == ["blocks", "2x16x12"]
    assert lines[-1].startswith(f"{report.after:,} of {report.before:,} parameters kept")
    # A model multiplies with the factors themselves, and scans over those of a stack.
    x = jnp.asarray(gaussian((5, 24)))
    again = compress.densify(small)
    assert_within(x @ small["dense"]["kernel"], x @ again["dense"]["kernel"], 100)

    def layer(x, W):
        return x, x[:, :16] @ W

    y, wanted = (lax.scan(layer, x, stack)[1] for stack in (small["blocks"], again["blocks"]))
    assert_within(y, wanted, 100)
    # Factors are trained through densify.
    gradient = jax.grad(lambda p: jnp.sum(compress.densify(p)["blocks"] ** 2), allow_int=True)(
        small
    )
    assert gradient["blocks"].U.shape == small["blocks"].U.shape
    assert float(jnp.abs(gradient["blocks"].U).max()) > 0.1


def test_metrics_of_rows_and_columns():
    W = jnp.asarray(gaussian((12, 11)))
    C, K = gram(12, 4, np.float64, 1), gram(11, 50, np.float64, 2)
    for metrics, left, right in (
        (C, C, np.eye(11)),
        ((None, K), np.eye(12), K),
        ((C, K), C, K),
        (np.arange(12.0), np.diag(np.arange(12.0)), np.eye(11)),
    ):
        small, report = compress.to_budget({"w": W}, 80, {"w": metrics})
        assert report.leaves[0].rank == 3
        lost = weighted(left, double(W) - double(compress.densify(small)["w"]), right)
        squares = np.sort(np.linalg.eigvals(left @ double(W) @ right @ double(W).T).real)[::-1]
        assert lost == pytest.approx(squares[3:].sum(), abs=1e-9 * squares.sum())
        error = np.sqrt(max(lost, 0) / weighted(left, double(W), right))
        assert report.leaves[0].error == pytest.approx(error, abs=1e-6)


# ---------------------------------------------------------------------------- what weights see


def convolve(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (2, 1), "VALID", dimension_numbers=numbers)


SEEN = {
    "stack": gaussian((3, 6, 6)),
    "head": gaussian((6, 2, 3), seed=1),
    "out": gaussian((2, 3, 6), seed=2),
    "conv": gaussian((3, 2, 4, 5), seed=3),
    "experts": gaussian((2, 6, 5), seed=4),
    "flipped": gaussian((4, 6), seed=5),
    "branch": gaussian((6, 4), seed=6),
    "twice": gaussian((6, 6), seed=7),
    "table": gaussian((10, 6), seed=8),
}
SEEN_AXES = {
    "head": (0, (1, 2)),
    "out": ((0, 1), 2),
    "conv": ((0, 1, 2), 3),
    "stack|experts": (1, 2),
}
SEEN_WHERE = "stack|head|out|conv|experts|flipped|branch|twice"


@jax.custom_jvp
def through(x, W):
    return x @ W


through.defjvp(lambda primals, tangents: (through(*primals), tangents[0] @ primals[1]))


def written(params, batch):
    """A model that multiplies in every way that there is."""
    x, images = batch

    @jax.checkpoint
    def layer(x, W):
        return jax.jit(lambda x, W: jnp.tanh(x @ W.astype(x.dtype)))(x, W), None

    x, _ = lax.scan(layer, x, params["stack"], reverse=True)
    x = jnp.tanh(x @ params["stack"][1])
    heads = jnp.einsum("nd,dhk->nhk", x, params["head"])
    x = x + jnp.einsum("nhk,hkd->nd", heads, params["out"])
    patches = convolve(images, params["conv"])
    per_expert = jax.vmap(lambda x, W: x @ W)(jnp.stack([x, 2 * x]), params["experts"])
    flat = params["flipped"].reshape(2, 2, 6).transpose(2, 0, 1).reshape(6, 4)
    flipped = jax.vmap(lambda x: flat.T @ x)(x)
    taken = lax.cond(x[0, 0] > -100, lambda W: x @ W, lambda W: (x + 1) @ W, params["branch"])
    x = lax.fori_loop(0, 2, lambda i, x: jnp.tanh(through(x, params["twice"])), x)
    return x + params["table"][:1], patches, per_expert, flipped, taken


def recorded(params, batch):
    """The sums of x^T x for the same model, in NumPy."""
    x, images = batch
    found = {"stack": np.zeros((3, 6, 6))}
    for i in (2, 1, 0, 1):
        found["stack"][i] += x.T @ x
        x = np.tanh(x @ params["stack"][i])
    found["head"] = x.T @ x
    heads = x @ params["head"].reshape(6, 6)
    found["out"] = heads.T @ heads
    x = x + heads @ params["out"].reshape(6, 6)
    height, width = images.shape[1] - 2, images.shape[2] - 1
    places = itertools.product(range(0, height, 2), range(width))
    P = np.concatenate(
        [images[:, i : i + 3, j : j + 2].reshape(len(images), -1) for i, j in places]
    )
    found["conv"] = P.T @ P
    found["experts"] = np.stack([x.T @ x, 4 * x.T @ x])
    found["flipped"] = found["branch"] = x.T @ x
    again = np.tanh(x @ params["twice"])
    found["twice"] = x.T @ x + again.T @ again
    return found


def test_collect_gram_sees_every_kind_of_product():
    batches = [(gaussian((n, 6), seed=n), gaussian((2, 5, 6, 4), seed=n)) for n in (7, 3)]
    params = jax.tree.map(jnp.asarray, SEEN)
    given, calls = jax.tree.map(jnp.asarray, batches), []
    found = compress.collect_gram(
        written, params, given, SEEN_WHERE, SEEN_AXES, progress=calls.append
    )
    assert calls == [1, 2]
    sums = [recorded(SEEN, batch) for batch in batches]
    for path, C in found.items():
        pair = C if path == "flipped" else (C, None)
        assert (pair[0] is None) == (path == "flipped")
        actual = pair[1] if path == "flipped" else C
        assert_within(actual, sums[0][path] + sums[1][path], 100)
    # And they are the metrics that compression wants.
    small, report = compress.to_budget(params, 0.7, found, SEEN_WHERE, SEEN_AXES)
    assert count(small) <= report.budget
    C = found["head"]
    W = SEEN["head"].reshape(6, 6)
    D = W - double(compress.densify(small)["head"]).reshape(6, 6)
    head = next(leaf for leaf in report.leaves if leaf.name == "head")
    error = np.sqrt(weighted(C, D, np.eye(6)) / weighted(C, W, np.eye(6)))
    assert error == pytest.approx(head.error, abs=1e-9)


def test_collect_gram_in_half_precision_and_while_loops():
    W, x = gaussian((6, 6), np.float32) / 3, gaussian((50, 6), np.float32, 1)

    def loop(params, x):
        def body(state):
            return state[0] + 1, (state[1] @ params["w"].astype(jnp.bfloat16)), params["w"]

        return lax.while_loop(lambda state: state[0] < 2, body, (0, x, params["w"]))

    found = compress.collect_gram(loop, {"w": jnp.asarray(W)}, [jnp.asarray(x, jnp.bfloat16)])["w"]
    assert found.dtype == jnp.float32
    half = [double(jnp.asarray(a, jnp.bfloat16).astype(jnp.float32)) for a in (x, W)]
    again = half[0] @ half[1]
    assert_within(found, half[0].T @ half[0] + again.T @ again, 0.05 / eps(np.float32))


X = gaussian((32, 6), np.float32)


def equinox():
    eqx = pytest.importorskip("equinox")
    net = eqx.nn.MLP(6, 3, 8, 1, key=KEY, dtype=jnp.float32)
    params, rest = eqx.partition(net, eqx.is_inexact_array)
    return params, lambda params, x: jax.vmap(eqx.combine(params, rest))(x), "weight", 1


def linen():
    nn = pytest.importorskip("flax.linen")
    net = nn.Sequential([nn.Dense(8), jnp.tanh, nn.Dense(3)])
    return net.init(KEY, X), net.apply, "kernel", 0


def nnx():
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    net = nnx.Sequential(nnx.Linear(6, 8, rngs=rngs), jnp.tanh, nnx.Linear(8, 3, rngs=rngs))
    graph, params = nnx.split(net)
    return params, lambda params, x: nnx.merge(graph, params)(x), "kernel", 0


def haiku():
    hk = pytest.importorskip("haiku")
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([8, 3])(x)))
    return net.init(KEY, X), net.apply, "w$", 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("framework", [equinox, linen, nnx, haiku])
def test_in_frameworks(framework, tmp_path):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params, call, where, side = framework()
        batches = [jnp.asarray(X[:20]), jnp.asarray(X[20:])]
        metrics = compress.collect_gram(call, params, batches, where)
        grams = [C[1] if side else C for C in metrics.values()]
        first = next(C for C in grams if C.shape == (6, 6))
        assert_within(first, double(X).T @ double(X), 100)
        small, report = compress.to_budget(params, 0.8, metrics, where)
        assert count(small) == report.after <= 0.8 * count(params)
        target = call(params, X)

        @jax.jit
        def step(small):
            def loss(small):
                return jnp.mean((call(compress.densify(small), X) - target) ** 2)

            value, gradient = jax.value_and_grad(loss)(small)
            return jax.tree.map(lambda x, g: x - 0.03 * g, small, gradient), value

        values = []
        for _ in range(3):
            small, value = step(small)
            values.append(float(value))
        assert values[2] < values[1] < values[0]
        numpy = pytest.importorskip("safetensors.numpy")
        leaves, structure = jax.tree.flatten(small)
        numpy.save_file({str(i): np.array(x) for i, x in enumerate(leaves)}, tmp_path / "a")
        found = numpy.load_file(tmp_path / "a")
        again = structure.unflatten([jnp.asarray(found[str(i)]) for i in range(len(leaves))])
        wanted = call(compress.densify(small), X)
        assert_same_bits(call(compress.densify(again), X), wanted)


# --------------------------------------------------------------------------------------- gates


def test_gates_are_differentiated_exactly_at_ties():
    # Repeated and zero singular values: the derivative of U g(S) S V^H is that of the map.
    A = np.diag([2.0, 2.0, 1.0, 0.0])[:, [1, 0, 2, 3]]
    C, weights = gram(4, 30, np.float64, 1), jnp.asarray(gaussian((4, 4)))
    for metrics in (None, {".": C}, {".": (C, np.arange(1.0, 5.0))}):

        def loss(A, t=0.3, metrics=metrics):
            gates = {".": jnp.asarray(t)}
            out = compress.apply_gates(A, gates, metrics, sharpness=4)
            soft = compress.gate_budget(A, gates, 10, metrics, sharpness=4)
            return jnp.sum(jnp.sin(out) * weights) + soft

        by_A, by_t = jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(A), jnp.asarray(0.3))
        assert_within(by_A, finite_differences(loss, A), 1e-6 / eps(np.float64))
        up, down = (float(loss(jnp.asarray(A), jnp.asarray(0.3 + h))) for h in (1e-5, -1e-5))
        assert float(by_t) == pytest.approx((up - down) / 2e-5, rel=1e-6)
    # The value itself, in a metric, from NumPy.
    F, s = np.linalg.cholesky(C).T, None
    U, s, Vh = np.linalg.svd(F @ A)
    gate = s**4 / (s**4 + np.exp(4 * 0.3))
    wanted = np.linalg.solve(F, (U * (gate * s)) @ Vh)
    found = compress.apply_gates(jnp.asarray(A), {".": jnp.asarray(0.3)}, {".": C}, sharpness=4)
    assert_within(found, wanted, 1e5)


def test_gates_begin_at_the_budget():
    params = model()
    gates = compress.rank_gates(params, 0.4, None, WHERE, AXES)
    assert set(gates) == {"dense/kernel", "blocks", "conv/kernel", "one/kernel"}
    soft = jax.jit(lambda budget: compress.gate_budget(params, gates, 0.2, None, AXES))(0)
    # (soft - budget) / budget, the budget being half of what they were made for
    assert float(soft) == pytest.approx(1, abs=1e-2)
    assert float(compress.gate_budget(params, gates, 0.41, None, AXES)) == 0
    gated = compress.apply_gates(params, gates, None, AXES)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(gated)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(params)
    ]
    # Halfway up the gates, at thresholds proportional to the root of what a rank costs.
    prices = {"dense/kernel": 45, "conv/kernel": 45, "blocks": 58, "one/kernel": 21}
    levels = [float(gates[path]) - np.log(price) / 2 for path, price in prices.items()]
    assert np.ptp(levels) < 1e-6


def test_gates_learn_which_weight_matters():
    # Of two equal weights the loss looks at one only: its ranks are to be kept.
    params = {"a": jnp.asarray(gaussian((12, 12))), "b": jnp.asarray(gaussian((12, 12), seed=1))}

    def loss(gates):
        soft = compress.apply_gates(params, gates)
        error = jnp.sum((soft["a"] - params["a"]) ** 2)
        error = error + 1e-3 * jnp.sum((soft["b"] - params["b"]) ** 2)
        return error + 300 * compress.gate_budget(params, gates, 0.45)

    gates = compress.rank_gates(params, 0.45)
    _, before = compress.to_budget(params, 0.45)
    step = jax.jit(jax.grad(loss))
    for _ in range(60):
        slopes = step(gates)
        gates = {path: t - 1e-3 * slopes[path] for path, t in gates.items()}
    _, after = compress.to_budget(params, 0.45, gates=gates)
    assert after.after <= after.budget
    assert after.leaves[0].rank > before.leaves[0].rank
    assert after.leaves[1].rank < before.leaves[1].rank


# ------------------------------------------------------------------------------------ bad input

P = {"dense": {"kernel": jnp.ones((8, 6)), "bias": jnp.ones(6)}, "ids": jnp.arange(3)}
NAN = {"dense": {"kernel": jnp.full((8, 6), jnp.nan)}}
W = jnp.ones((8, 6))
G = compress.rank_gates(P, 0.5)


def grouped(params, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, params, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=2
    )


BAD = {
    "rank": (lambda: compress.factorize(W, 7), "factorize: `rank` must satisfy 1 <= rank <= 6"),
    "nan weight": (lambda: compress.factorize(W * jnp.nan, 1), "`w` must be finite"),
    "nan metric": (lambda: compress.factorize(W, 1, np.full(8, np.nan)), "`in_metric` must be f"),
    "size": (lambda: compress.factorize(W, 1, np.ones(6)), "must be None, a vector .8,., a Gram"),
    "negative": (lambda: compress.factorize(W, 1, -np.ones(8)), "must not be negative"),
    "no Gram": (lambda: compress.factorize(W, 1, np.eye(8, k=1)), "wrap F of C = F.H F in compr"),
    "indefinite": (lambda: compress.factorize(W, 1, -np.eye(8)), "an eigenvalue -1.0e[+]00; wrap"),
    "factor": (lambda: compress.factorize(W, 1, compress.Factor(np.eye(6))), "shape .p, 8., got"),
    "method": (lambda: compress.factorize(W, 1, method="fast"), "must be one of 'auto', 'full'"),
    "complex": (lambda: compress.factorize(W, 1, np.eye(8) * 1j), "must be real for a real weight"),
    "spectra": (lambda: compress.allocate([[1.0]], [(2, 3)], 9), "must hold min.m, n. values"),
    "keys": (lambda: compress.allocate({"a": [1.0]}, {"b": (1, 1)}, 9), "must have the keys of"),
    "nan leaf": (lambda: compress.to_budget(NAN, 0.5), "NaN or Inf in leaf 'dense/kernel'"),
    "small": (lambda: compress.to_budget(P, 20), "at least 24 of 57 parameters, the smallest pos"),
    "share": (lambda: compress.to_budget(P, 0.1), "at least 24 of 57 .* got 0.1, which is 5"),
    "above": (lambda: compress.to_budget(P, 1.5), "must satisfy 0 < budget < 1, got 1.5"),
    "no budget": (lambda: compress.to_budget(P, "half"), "`budget` must be an int, got str"),
    "metrics": (lambda: compress.to_budget(P, 0.5, "file"), "`metrics` must be None or a dict"),
    "other leaf": (lambda: compress.to_budget(P, 0.5, {"x": None}), "got one for 'x'; the paths"),
    "no metric": (lambda: compress.to_budget(P, 0.5, {}), "got none for 'dense/kernel'"),
    "traced": (lambda: jax.jit(lambda p: compress.to_budget(p, 0.5)[0])(P), "got a traced one"),
    "gates": (lambda: compress.to_budget(P, 0.5, gates={"x": 1.0}), "`gates` must come from rank"),
    "other gates": (
        lambda: compress.apply_gates({"x": W}, G),
        "got one for 'dense/kernel'; the paths are x",
    ),
    "odd": (lambda: compress.apply_gates(P, G, sharpness=3), "`sharpness` must be even, got 3"),
    "no batch": (lambda: compress.collect_gram(lambda p, x: x, W, []), "must hold a batch, got no"),
    "not met": (
        lambda: compress.collect_gram(lambda p, x: x @ (2 * p), W, [jnp.ones((1, 8))]),
        "must be an operand of a matrix product or convolution, got '.'",
    ),
    "both": (
        lambda: compress.collect_gram(lambda p, x: x @ p @ p.T, W, [jnp.ones((1, 8))]),
        "leaf '.' must be .* but one product sums over its rows and another over its columns",
    ),
    "axes": (
        lambda: compress.collect_gram(
            lambda p, x: jnp.tensordot(x, p, 2),
            jnp.ones((2, 3, 4)),
            [jnp.ones((2, 3))],
            None,
            (0, (1, 2)),
        ),
        "but a product sums over other axes of it; leave it out",
    ),
    "grouped": (
        lambda: compress.collect_gram(
            grouped, jnp.ones((1, 1, 2, 4)), [jnp.ones((1, 3, 3, 4))], None, ((0, 1, 2), 3)
        ),
        "but it is the kernel of a grouped convolution",
    ),
    "nan input": (
        lambda: compress.collect_gram(lambda p, x: x @ p, W, [jnp.full((1, 8), jnp.nan)]),
        "NaN or Inf into leaf '.'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
