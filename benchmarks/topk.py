"""Top-k triplets to a residual of 1e-4 s_1 on both sides, and a fixed number of products.

    python -m benchmarks.topk [--quick]

Every peer runs at the cheapest of its settings that reaches the residual, measured in float64 on
its own output; a randomized SVD of ten products is compared at the same number of products. Run
nothing else beside it.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse

import jaxsvd

from .alone import alone
from .matrices import plateau, random_sparse, residual, with_spectrum
from .measure import Claim, Report, Row, main, medians, timed

TARGET = 1e-4
OURS = "jaxsvd.truncated_svd"

# Size: (m, n, spectrum, k, times that the best peer must take); full, then quick.
DENSE = (
    (
        (4096, 4096, lambda i: i**-0.5, "i^-1/2", 50, 3),
        (20000, 1000, lambda i: np.exp(-i / 30), "exp(-i/30)", 50, 2),
        (6000, 3000, lambda i: plateau(len(i), 30), "plateau", 30, 2),
    ),
    (
        (512, 512, lambda i: i**-0.5, "i^-1/2", 10, 3),
        (2000, 300, lambda i: np.exp(-i / 30), "exp(-i/30)", 10, 2),
        (800, 400, lambda i: plateau(len(i), 10), "plateau", 10, 2),
    ),
)
SPARSE = ((80_000, 1_000_000, 100), (4_000, 20_000, 10))
SKETCH = ((4096, 50), (512, 10))


def scipy_calls(a: Any, k: int, solver: str) -> list[Callable]:
    from scipy.sparse.linalg import svds

    options = {"solver": solver, "random_state": 0}
    last = 0 if solver == "arpack" else 1e-5
    return [functools.partial(svds, a, k, tol=t, **options) for t in (1e-2, 1e-3, 1e-4, last)]


def torch_call(t: Any, k: int, columns: int, iterations: int) -> Callable:
    import torch

    def call():
        U, S, V = torch.svd_lowrank(t, columns, niter=iterations)
        return U[:, :k].numpy(), S[:k].numpy(), V[:, :k].T.numpy()

    return call


def sklearn_call(a: Any, k: int, oversampling: int, iterations: int) -> Callable:
    from sklearn.utils.extmath import randomized_svd

    return lambda: randomized_svd(
        a, k, n_oversamples=oversampling, n_iter=iterations, random_state=0
    )


def sklearn_alone(n: int, k: int, repeats: int) -> float:
    """Return the seconds of scikit-learn's ten products, to be called in a process of its own."""
    a = with_spectrum(n, n, np.arange(1, n + 1) ** -0.5)
    return medians({"": sklearn_call(a, k, 10, 4)}, repeats)[""]


def matfree_call(a: Any, k: int, depth: int) -> Callable:
    """Return Golub-Kahan bidiagonalization of the given depth, compiled."""
    from matfree import decomp, eig

    A, start = jnp.asarray(a), jnp.full(a.shape[1], a.shape[1] ** -0.5, a.dtype)
    svd = eig.svd_partial(decomp.bidiag(depth))

    @jax.jit
    def call(A):
        Ut, S, Vh = svd(lambda v: A @ v, start)
        return Ut[:k].T, S[:k], Vh[:k]

    return lambda: call(A)


def on_torch(a: Any) -> Any:
    """Return a torch tensor of a matrix, two threads at work; raises ImportError without torch."""
    import torch

    torch.set_num_threads(2)
    return torch.from_numpy(a)


def peers(a: Any, k: int) -> Iterator[tuple[str, list[Callable]]]:
    """Yield (name, settings from cheap to dear) of what can be imported."""
    yield "scipy arpack", scipy_calls(a, k, "arpack")
    if not isinstance(a, np.ndarray):
        return
    yield "scipy propack", scipy_calls(a, k, "propack")
    sweeps = (4, 8, 16, 32, 64)
    try:
        yield "scikit-learn", [sklearn_call(a, k, k, q) for q in sweeps]
    except ImportError:
        pass
    try:
        depths = (2 * k, 4 * k, 8 * k)
        yield "matfree", [matfree_call(a, k, depth) for depth in depths]
    except ImportError:
        pass
    try:
        t = on_torch(a)
    except ImportError:
        return
    yield "torch.svd_lowrank", [torch_call(t, k, 2 * k, q) for q in sweeps]


def against_peers(case: str, a: Any, k: int, bar: float, repeats: int) -> Report:
    """Return truncated_svd, its gradient, and the peers on one matrix."""
    is_dense = isinstance(a, np.ndarray)
    A = jnp.asarray(a) if is_dense else sparse.BCSR.from_scipy_sparse(a)
    weights = jnp.arange(1.0, k + 1)

    def triplets(A):
        return jaxsvd.truncated_svd(A, k, tol=TARGET)

    def loss(data):
        matrix = data if is_dense else sparse.BCSR((data, A.indices, A.indptr), shape=A.shape)
        U, S, Vh = triplets(matrix)
        return jnp.sum((U[:8] ** 4 + Vh[:, :8].T ** 4 + (S**2)[None, :]) * weights[None, :])

    gradient = jax.jit(jax.value_and_grad(loss))
    data = A if is_dense else A.data
    with_gradient = "jaxsvd value_and_grad"
    calls = {OURS: lambda: triplets(A), with_gradient: lambda: gradient(data)}
    failed = []
    for name, settings in peers(a, k):
        reached = np.inf
        for call in settings:
            reached = residual(a, *call())
            if reached <= TARGET:
                calls[name] = call
                break
        else:
            failed.append(Row(case, name, None, error=reached, note="not reached"))

    def error(result):
        return residual(a, *result) if len(result) == 3 else None

    rows = timed(case, calls, error, repeats) + failed
    seconds = {row.name: row.seconds for row in rows if row.seconds is not None}
    ours, dear = seconds.pop(OURS), seconds.pop(with_gradient)
    claims = [
        Claim(case, "residual / s_1", rows[0].error or 0.0, TARGET, at_least=False),
        Claim(case, "best peer / ours", min(seconds.values(), default=np.nan) / ours, bar),
        Claim(case, "value_and_grad / forward", dear / ours, 2.5, at_least=False),
    ]
    return Report(rows, claims)


def fixed_products(n: int, k: int, repeats: int) -> Report:
    """Return randomized_svd of ten products, those products alone, and the peers with as many."""
    case = f"{n} x {n}, i^-1/2, k={k}, 10 products"
    a = with_spectrum(n, n, np.arange(1, n + 1) ** -0.5)
    A, key = jnp.asarray(a), jax.random.key(0)
    op, l = jaxsvd.operators.Dense(A), k + 10
    X = jax.random.normal(key, (n, l)) / n**0.5

    @jax.jit
    def products(op, X):
        for _ in range(5):
            X = op.rmatmat(op.matmat(X))
        return X

    right, left = (jax.jit(f) for f in (type(op).matmat, type(op).rmatmat))
    ours, bare = "jaxsvd.randomized_svd", "the products alone"
    there, back = f"A @ X, {l} columns", f"A^H @ Y, {l} columns"
    calls: dict[str, Callable] = {
        ours: lambda: jaxsvd.randomized_svd(key, A, k, oversampling=10, power_iterations=4),
        bare: lambda: products(op, X),
        there: lambda: right(op, X),
        back: lambda: left(op, X),
    }
    bars = {}
    apart = "scikit-learn, in a process of its own"
    try:
        calls["scikit-learn"] = sklearn_call(a, k, 10, 4)
        bars |= {"scikit-learn": 3.0, apart: 3.0}
    except ImportError:
        pass
    try:
        calls["torch.svd_lowrank"] = torch_call(on_torch(a), k, l, 4)
        bars["torch.svd_lowrank"] = 1.5
    except ImportError:
        pass
    norm = np.linalg.norm(a)

    def error(result):  # |A - U S Vh|_F / |A|_F
        if not isinstance(result, tuple):
            return None
        U, S, Vh = (np.asarray(x) for x in result)
        return float(np.linalg.norm(a - (U * S) @ Vh) / norm)

    rows = timed(case, calls, error, repeats)
    if apart in bars:
        # As who does not import jaxsvd has it, 26 being OpenBLAS's own: see `jaxsvd._openblas`.
        spent = alone(sklearn_alone, n, k, repeats, OPENBLAS_THREAD_TIMEOUT="26")
        rows.append(Row(case, apart, spent, note="its threads at their default"))
    found = {row.name: row for row in rows}
    seconds = {name: row.seconds or np.nan for name, row in found.items()}
    ratio = seconds[ours] / seconds[bare]
    claims = [
        Claim(case, "ours / its products alone", ratio, 1.4, at_least=False),
        Claim(case, "A @ X / A^H @ Y", seconds[there] / seconds[back], 0.8),
    ]
    for name, bar in bars.items():
        claims.append(Claim(case, f"{name} / ours", seconds[name] / seconds[ours], bar))
        if name == "scikit-learn":  # 1e-4: two draws of the same method differ that much
            larger = (found[ours].error or 0.0) / (found[name].error or np.nan)
            claims.append(Claim(case, f"error / that of {name}", larger, 1.0001, at_least=False))
    return Report(rows, claims)


def run(quick: bool, only: str = "") -> Report:
    """Return all rows and claims, or those of the cases whose name contains ``only``."""
    repeats = 3 if quick else 9
    reports = []
    for m, n, spectrum, words, k, bar in DENSE[quick]:
        case = f"{m} x {n}, {words}, k={k}"
        if only in case:
            a = with_spectrum(m, n, spectrum(np.arange(1.0, n + 1)))
            reports.append(against_peers(case, a, k, bar, repeats))
    n, nonzeros, k = SPARSE[quick]
    case = f"sparse {n} x {n}, {nonzeros} nonzeros, k={k}"
    if only in case:
        reports.append(against_peers(case, random_sparse(n, nonzeros), k, 2, repeats))
    if only in "products":
        reports.append(fixed_products(*SKETCH[quick], repeats))
    rows = [row for report in reports for row in report.rows]
    claims = [claim for report in reports for claim in report.claims]
    return Report(rows, claims, "residual / s_1; of 10 products |A - U S Vh|_F / |A|_F")


if __name__ == "__main__":
    raise SystemExit(main("topk", run))
