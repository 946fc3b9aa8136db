"""Top-k triplets to a residual of 1e-4 s_1 on both sides: this library against its peers.

    python -m benchmarks.topk [--case NAME] [--json PATH]

Every peer runs at the cheapest of its settings that reaches the residual, measured in float64 on
its own output. Times are medians of whole calls in one process, compilation apart; ratios are of
medians in one run. Run nothing else beside it.
"""

import argparse
import json
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxsvd

TARGET = 1e-4


def with_spectrum(m, n, s, seed=0):
    """Return a float32 matrix (m, n) with the given singular values and random vectors."""
    rng = np.random.default_rng(seed)
    r = len(s)
    U, V = (np.linalg.qr(rng.standard_normal((rows, r), np.float32))[0] for rows in (m, n))
    return np.ascontiguousarray((U * s.astype(np.float32)) @ V.T)


def plateau(n, k):
    noise = 0.01 * np.random.default_rng(0).random(n)
    return np.sort(np.where(np.arange(n) < k, 1.0, 0.1) * (1 + noise))[::-1]


CASES = {
    "4096 x 4096, i^-1/2, k=50": (4096, 4096, lambda: np.arange(1, 4097) ** -0.5, 50),
    "20000 x 1000, exp(-i/30), k=50": (20000, 1000, lambda: np.exp(-np.arange(1000) / 30), 50),
    "6000 x 3000, plateau, k=30": (6000, 3000, lambda: plateau(3000, 30), 30),
}


def residual(a, U, S, Vh):
    """Return the larger of the two residuals over all triplets, relative to s_1."""
    a, U, S, V = (np.asarray(x, np.float64) for x in (a, U, S, np.asarray(Vh).T))
    right = np.linalg.norm(a @ V - U * S, axis=0).max()
    return max(right, np.linalg.norm(a.T @ U - V * S, axis=0).max()) / S.max()


def peers(a, k):
    """Yield (name, settings from cheap to dear) of what can be imported."""
    import scipy.sparse.linalg as sla

    def scipy_call(solver, **options):
        return lambda: sla.svds(a, k, solver=solver, random_state=0, **options)

    yield "scipy arpack", [scipy_call("arpack", tol=t) for t in (1e-2, 1e-3, 1e-4, 0)]
    yield "scipy propack", [scipy_call("propack", tol=t) for t in (1e-2, 1e-3, 1e-4, 1e-5)]
    try:
        from sklearn.utils.extmath import randomized_svd

        def sklearn_call(q):
            return lambda: randomized_svd(a, k, n_oversamples=k, n_iter=q, random_state=0)

        yield "scikit-learn", [sklearn_call(q) for q in (4, 8, 16, 32, 64)]
    except ImportError:
        pass
    try:
        import torch

        torch.set_num_threads(2)
        t = torch.from_numpy(a)

        def torch_call(q):
            def call():
                U, S, V = torch.svd_lowrank(t, 2 * k, niter=q)
                return U[:, :k].numpy(), S[:k].numpy(), V[:, :k].T.numpy()

            return call

        yield "torch.svd_lowrank", [torch_call(q) for q in (4, 8, 16, 32, 64)]
    except ImportError:
        pass


def median_seconds(call, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def run_case(m, n, spectrum, k, repeats):
    """Return the rows of one case: name, seconds, residual, and compile seconds for ours."""
    a = with_spectrum(m, n, spectrum())
    A = jnp.asarray(a)

    def ours():
        return jaxsvd.truncated_svd(A, k, tol=TARGET)

    start = time.perf_counter()
    result = jax.block_until_ready(ours())
    first = time.perf_counter() - start
    seconds = median_seconds(ours, repeats)
    rows = [
        {
            "name": "jaxsvd.truncated_svd",
            "seconds": seconds,
            "residual": residual(a, *result),
            "compile": first - seconds,
        }
    ]

    weights = jnp.arange(1.0, k + 1)

    def loss(A):
        U, S, Vh = jaxsvd.truncated_svd(A, k, tol=TARGET)
        return jnp.sum((U[:8] ** 4 + Vh[:, :8].T ** 4 + (S**2)[None, :]) * weights[None, :])

    gradient = jax.jit(jax.value_and_grad(loss))
    jax.block_until_ready(gradient(A))
    row = {
        "name": "its value and gradient",
        "seconds": median_seconds(lambda: gradient(A), repeats),
    }
    rows.append(row)
    for name, settings in peers(a, k):
        for call in settings:
            reached = residual(a, *call())
            if reached <= TARGET:
                rows.append(
                    {
                        "name": name,
                        "seconds": median_seconds(call, max(3, repeats // 2)),
                        "residual": reached,
                    }
                )
                break
        else:
            rows.append({"name": name, "seconds": None, "residual": reached})
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", help="run the cases whose name contains this")
    parser.add_argument("--json", help="write the rows to this file")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args(argv)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {platform.processor()}")
    everything = {}
    for name, (m, n, spectrum, k) in CASES.items():
        if args.case and args.case not in name:
            continue
        rows = run_case(m, n, spectrum, k, args.repeats)
        everything[name] = rows
        print(f"\n{name}: residual {TARGET:g} s_1 on both sides, float32")
        for row in rows:
            seconds = row["seconds"]
            ratio = "" if seconds is None else f"{seconds / rows[0]['seconds']:6.2f} x ours"
            shown = "not reached" if seconds is None else f"{seconds:8.3f} s"
            error = f"residual {row['residual']:.1e}" if "residual" in row else ""
            print(f"  {row['name']:24} {shown:>12} {ratio:>14}  {error}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"jax": jax.__version__, "cases": everything}, file, indent=1)


if __name__ == "__main__":
    main()
