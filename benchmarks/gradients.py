"""Gradients of top-k triplets: how exact, at what price, and what others get instead.

    python -m benchmarks.gradients [--quick]

Errors are relative to the closed form of the full SVD in float64. The losers are the rule of the
thin SVD at truncated triplets (the projector term X = b_U S^-1, as it is widely copied) and plain
differentiation through a subspace iteration.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsvd
from jaxsvd import operators
from jaxsvd.operators.base import Operator, operator, static

from .matrices import exact_gradient, plateau, random_sparse, spectra, with_ratio, with_spectrum
from .measure import Claim, Report, Row, first_call, main, medians

RATIOS = (0.5, 0.9, 0.99)
EXACT = ((600, 400, 10), (320, 280, 5))  # m, n, k; full, then quick
PRICE = (
    (
        (4096, 4096, lambda i: i**-0.5, "i^-1/2", 50),
        (20000, 1000, lambda i: np.exp(-i / 30), "exp(-i/30)", 50),
        (6000, 3000, lambda i: plateau(len(i), 30), "plateau", 30),
    ),
    (
        (512, 512, lambda i: i**-0.5, "i^-1/2", 10),
        (1200, 400, lambda i: np.exp(-i / 30), "exp(-i/30)", 10),
    ),
)
MEMORY = ((20_000, 40_000, 20), (4_000, 8_000, 10))  # n, 2 n, k
UNROLLED = (4, 30)  # steps, from too few to converged


def relative(x: Any, y: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(x) - y) / np.linalg.norm(y))


def loss_with(G: Any) -> Callable:
    """Return the loss <G, U S^2 Vh>: of all vectors, unchanged by their signs."""
    return lambda U, S, Vh: jnp.sum((U * (S**2)[None, :]) @ Vh * G)


def through_iterations(A: jax.Array, k: int, steps: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return k triplets by a plain subspace iteration, to be differentiated as it stands."""
    V = jax.random.normal(jax.random.key(0), (A.shape[1], k + 16), A.dtype)

    def step(V, _):
        return jnp.linalg.qr(A.T @ jnp.linalg.qr(A @ V)[0])[0], None

    V, _ = jax.lax.scan(step, V, None, length=steps)
    Q, R = jnp.linalg.qr(A @ V)
    X, S, Yh = jnp.linalg.svd(R)
    return (Q @ X)[:, :k], S[:k], (Yh @ V.T)[:k]


def gradients(k: int, loss: Callable) -> dict[str, Callable]:
    """Return the contenders: A -> gradient of the loss at the k leading triplets."""

    def triplets(A):
        return jaxsvd.truncated_svd(A, k, method="krylov", tol=1e-10)

    def of_core(A):
        U, C, Vh = jaxsvd.core_svd(A, k, method="krylov", tol=1e-10)
        return loss(U @ (C @ C), jnp.ones(k), Vh)

    def projector(A):
        result = triplets(A)
        cotangent = jaxsvd.SVDResult(*jax.grad(loss, (0, 1, 2))(*result))
        return jaxsvd.rules.svd_pullback(result, cotangent)

    contenders = {
        "jaxsvd.truncated_svd": jax.grad(lambda A: loss(*triplets(A))),
        "jaxsvd.core_svd": jax.grad(of_core),
        "projector term only": projector,
    }
    for steps in UNROLLED:
        contenders[f"through {steps} iterations"] = jax.grad(
            lambda A, steps=steps: loss(*through_iterations(A, k, steps))
        )
    return contenders


def exactness(m: int, n: int, k: int, repeats: int) -> Report:
    """Return errors and scratch memory over gap ratios; ours must be within 1e-8."""
    rows, claims = [], []
    G = jnp.asarray(np.random.default_rng(1).standard_normal((m, n)))
    loss = loss_with(G)
    shape = jax.ShapeDtypeStruct((m, n), np.float64)
    compiled, spent, scratch = {}, {}, {}
    for name, f in gradients(k, loss).items():
        make = jax.jit(f).lower(shape).compile
        compiled[name], spent[name] = first_call(make)
        scratch[name] = compiled[name].memory_analysis().temp_size_in_bytes
    for ratio in RATIOS:
        case = f"{m} x {n}, s_k+1 / s_k = {ratio:g}, k={k}"
        a = with_spectrum(m, n, with_ratio(n, k, ratio), np.float64)
        A, exact = jnp.asarray(a), exact_gradient(loss, a, k)
        calls = {name: (lambda f=f, A=A: f(A)) for name, f in compiled.items()}
        seconds = medians(calls, repeats)
        for name, call in calls.items():
            error = relative(call(), exact)
            rows.append(Row(case, name, seconds[name], spent[name], scratch[name], error))
            if name.startswith("jaxsvd"):
                claims.append(Claim(case, f"{name}: error", error, 1e-8, at_least=False))
    return Report(rows, claims)


def estimates(m: int, n: int, k: int) -> Report:
    """Return measured error / Info.gradient_error over spectra, tolerances and sketches."""
    key = jax.random.key(0)
    options: dict[str, Any] = {"return_info": True}
    runs: dict[str, Callable] = {
        f"{method}, tol={tol:g}": lambda A, method=method, tol=tol: jaxsvd.truncated_svd(
            A, k, method=method, tol=tol, **options
        )
        for method, tols in {"krylov": (1e-2, 1e-4, 1e-6), "subspace": (1e-2, 1e-4)}.items()
        for tol in tols
    }
    for q in (0, 1, 2, 4, 8):
        runs[f"{q} power iterations"] = lambda A, q=q: jaxsvd.randomized_svd(
            key, A, k, power_iterations=q, **options
        )
    # Only kept values that are distinct have triplets with a derivative.
    apart = ("i^-1/2", "exponential", "one gap")
    matrices = {name: s for name, s in spectra(n, k).items() if name in apart}
    matrices |= {f"ratio {ratio:g}": with_ratio(n, k, ratio) for ratio in RATIOS}
    loss = loss_with(jnp.asarray(np.random.default_rng(1).standard_normal((m, n))))
    problems = {}
    for name, s in matrices.items():
        a = with_spectrum(m, n, s, np.float64)
        problems[name] = jnp.asarray(a), exact_gradient(loss, a, k)
    rows, ratios = [], []
    for run, triplets in runs.items():

        @jax.jit
        def gradient(A, triplets=triplets):
            def value(A):
                result, info = triplets(A)
                return loss(*result), info.gradient_error

            return jax.grad(value, has_aux=True)(A)

        for name, (A, exact) in problems.items():
            found, estimate = gradient(A)
            error, estimate = relative(found, exact), float(estimate)
            promises = estimate <= 0.3  # beyond, no digit is promised and none need be there
            if promises or error <= 0.3:
                ratios.append(error / min(estimate, 1.0))
            note = f"Info.gradient_error {estimate:.1e}" + ("" if promises else ", no digit")
            rows.append(Row(f"{m} x {n}, {name}, k={k}", run, None, error=error, note=note))
    case = "error / Info.gradient_error"
    claims = [
        Claim(case, "largest", max(ratios), 10, at_least=False),
        Claim(case, "smallest", min(ratios), 0.1),
    ]
    return Report(sorted(rows, key=lambda row: row.case), claims)


class Counter:
    """Vectors multiplied while a program ran, also by a tangent or into a cotangent of A."""

    def __init__(self):
        self.vectors = 0

    def __call__(self, X):
        self.vectors += X.shape[-1]
        return X


@operator
class Counted(Operator):
    """A matrix whose products are counted where they run."""

    of: Operator
    counter: Counter = static()

    @property
    def shape(self):
        return self.of.shape

    @property
    def dtype(self):
        return self.of.dtype

    def _tick(self, X):
        def count(_, X):
            return jax.pure_callback(self.counter, jax.ShapeDtypeStruct(X.shape, X.dtype), X)

        # The rule's solve wants its matrix transposed, which a callback by itself cannot be.
        return jax.custom_derivatives.linear_call(count, count, (), X)

    def matmat(self, X):
        return self.of.matmat(self._tick(X))

    def rmatmat(self, Y):
        return self.of.rmatmat(self._tick(Y))


def price(m: int, n: int, s: np.ndarray, words: str, k: int, repeats: int) -> Report:
    """Return value_and_grad against the forward call, in seconds and in products with A."""
    tol = 1e-4
    case = f"{m} x {n}, {words}, k={k}, 1 - s_k+1 / s_k = {1 - s[k] / s[k - 1]:.1e}"
    A = jnp.asarray(with_spectrum(m, n, s))
    weights = jnp.arange(1.0, k + 1)

    def loss(A):  # touches a few rows: its own cost does not count
        U, S, Vh = jaxsvd.truncated_svd(A, k, tol=tol)
        return jnp.sum((U[:8] ** 4 + Vh[:, :8].T ** 4 + (S**2)[None, :]) * weights[None, :])

    forward, both = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
    calls = {"forward": lambda: forward(A), "value_and_grad": lambda: both(A)}
    first = {name: first_call(call)[1] for name, call in calls.items()}
    seconds = medians(calls, repeats)
    vectors = {}
    for name, make in {"forward": lambda f: f, "value_and_grad": jax.value_and_grad}.items():
        counter = Counter()
        call = jax.jit(make(lambda a, counter=counter: loss(Counted(operators.Dense(a), counter))))
        jax.block_until_ready(call(A))
        vectors[name] = counter.vectors
    # The last 2 k vectors form the gradient, U X^H and Y V^H: they meet the cotangent, not A.
    with_A = {**vectors, "value_and_grad": vectors["value_and_grad"] - 2 * k}
    rows = [
        Row(case, name, seconds[name], first[name] - seconds[name], note=f"{vectors[name]} vectors")
        for name in calls
    ]
    claims = [
        Claim(case, f"value_and_grad / forward, {unit}", x["value_and_grad"] / x["forward"], 2.5,
              at_least=False)
        for unit, x in {"seconds": seconds, "products with A": with_A}.items()
    ]  # fmt: skip
    return Report(rows, claims)


def memory(n: int, larger: int, k: int) -> Report:
    """Return the scratch memory of a sparse gradient in units of (m + n) k numbers."""
    from jax.experimental import sparse

    used, rows = {}, []
    case = f"memory of value_and_grad, sparse n x n, k={k}"
    for size in (n, larger):
        a = random_sparse(size, 4 * size)
        A = sparse.BCOO.from_scipy_sparse(a)

        def loss(data, A=A):
            result = jaxsvd.truncated_svd(sparse.BCOO((data, A.indices), shape=A.shape), k)
            return jnp.sum(result.U[:8] ** 4) + jnp.sum(result.S)

        compiled = jax.jit(jax.value_and_grad(loss)).lower(A.data).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        temporary = analysis.temp_size_in_bytes
        used[size] = temporary / (2 * size * k * 4)
        rows.append(
            Row(case, f"n={size}", None, memory=temporary, note=f"{used[size]:.1f} (m + n) k")
        )
    claims = [
        Claim(case, "scratch / ((m + n) k)", used[larger], 40, at_least=False),
        Claim(case, "growth with n", used[larger] / used[n], 1.1, at_least=False),
    ]
    return Report(rows, claims)


def run(quick: bool) -> Report:
    """Return all rows and claims."""
    repeats = 3 if quick else 9
    with jax.enable_x64(True):
        reports = [exactness(*EXACT[quick], repeats), estimates(*EXACT[True])]
    for m, n, spectrum, words, k in PRICE[quick]:
        reports.append(price(m, n, spectrum(np.arange(1.0, n + 1)), words, k, repeats))
    reports.append(memory(*MEMORY[quick]))
    rows = [row for report in reports for row in report.rows]
    claims = [claim for report in reports for claim in report.claims]
    return Report(rows, claims, "relative error of the gradient")


if __name__ == "__main__":
    raise SystemExit(main("gradients", run))
