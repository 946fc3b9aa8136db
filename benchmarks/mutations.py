"""Do the tests see a fault? Each of the list is planted in a copy of the tree, and tests are run.

    python -m benchmarks.mutations [--only WORD ...] [--skip-whole] [--json PATH]

A fault is one exact piece of text replaced by another, in a copy in a temporary folder; the small
part of the tests beside it must fail, and pass in a copy without fault. Exit code 1 where a fault
is not caught, or its text is no longer there once. `tests/test_mutations.py` looks at the texts in
every run, so who changes such a line learns of it there.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .measure import hardware
from .trials import Failure, Row

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mutations.json"
NEEDED = ("jaxsvd", "tests", "benchmarks", "conftest.py", "pyproject.toml", "README.md")
# Of tests that run in half a minute; a fault that makes a loop endless is not caught by them.
LIMIT = 400


class Fault(NamedTuple):
    """One fault.

    Attributes:
        name: what is wrong.
        file: in jaxsvd/.
        text: what stands there, once.
        wrong: what takes its place.
        tests: arguments of pytest, the part of the tests that is to see it.
    """

    name: str
    file: str
    text: str
    wrong: str
    tests: str


DENSE = "tests/test_custom_vjp.py -k written_rules"
TABLE = "tests/test_derivatives.py -k first_derivatives"
SECOND = "tests/test_second_order.py"
TRUNCATED = "tests/test_truncated_gradients.py -k 'small_gaps or complex_gradient'"
CORE = "tests/test_second_order.py -k core"
HERMITIAN = "tests/test_hermitian.py -k 'scipy or digits'"

FAULTS = (
    Fault(
        "svd rule: D for E",
        "rules/dense.py",
        "symmetric, antisymmetric = D * herm(P), E * skew(P)",
        "symmetric, antisymmetric = D * herm(P), D * skew(P)",
        DENSE,
    ),
    Fault(
        "svd pullback: a conjugate dropped",
        "rules/dense.py",
        "    return jnp.conj(A_bar)\n",
        "    return A_bar\n",
        DENSE,
    ),
    Fault(
        "svd rule: the projector I - U U^H missing",
        "rules/dense.py",
        "dU = product(U1, W - P * S_inv[None, :]) + dAV * S_inv[None, :]",
        "dU = product(U1, W) + dAV * S_inv[None, :]",
        DENSE,
    ),
    Fault(
        "svd rule: wrong sign in Z",
        "rules/dense.py",
        "W, Z = symmetric + antisymmetric, symmetric - antisymmetric",
        "W, Z = symmetric + antisymmetric, symmetric + antisymmetric",
        DENSE,
    ),
    Fault(
        "svd rule: the extra columns of U move the wrong way",
        "rules/dense.py",
        "[dU, -product(U1, adjoint_product(dU, U[:, k:]))]",
        "[dU, product(U1, adjoint_product(dU, U[:, k:]))]",
        "tests/test_custom_vjp.py -k 'written_rules or extra_subspace'",
    ),
    Fault(
        "spectral rule: D1 for D2",
        "rules/spectral.py",
        "left = product(U, D1 * herm(P) + D2 * skew(P))",
        "left = product(U, D1 * herm(P) + D1 * skew(P))",
        TABLE,
    ),
    Fault(
        "spectral rule: quadrature at the wrong points",
        "rules/spectral.py",
        "middle, half = (x + y) / 2, gap / (2 * 3**0.5)",
        "middle, half = (x + y) / 2, gap / 2",
        "tests/test_tolerances.py -k nearly_tied",
    ),
    Fault(
        "spectral rule, second order: z+ for z-",
        "rules/spectral.py",
        "minus * (EF_v + adjoint(EF_v))",
        "plus * (EF_v + adjoint(EF_v))",
        SECOND,
    ),
    Fault(
        "near ties: a tolerance 100 times larger",
        "_tolerances.py",
        "return eps(dtype) ** 0.2 / 2",
        "return 100 * eps(dtype) ** 0.2 / 2",
        "tests/test_tolerances.py -k nearly_tied",
    ),
    Fault(
        "ties: a tolerance 100 times larger",
        "_tolerances.py",
        "    return eps(dtype) ** 0.75\n",
        "    return 100 * eps(dtype) ** 0.75\n",
        "tests/test_tolerances.py -k test_ties",
    ),
    Fault(
        "zero: a tolerance 100 times larger",
        "_tolerances.py",
        "return (max(min(m, n), 1) + max(m, n) ** 0.5) * eps(dtype)",
        "return 100 * (max(min(m, n), 1) + max(m, n) ** 0.5) * eps(dtype)",
        "tests/test_tolerances.py -k test_zeros",
    ),
    Fault(
        "core rule: herm for skew",
        "rules/core.py",
        "lambda K: product(C, K) + product(K, C), skew(P)",
        "lambda K: product(C, K) + product(K, C), herm(P)",
        CORE,
    ),
    Fault(
        "core rule, second order: a factor of the equation exchanged",
        "rules/core.py",
        "lambda K: product(C, K) + product(K, C), skew(P)",
        "lambda K: product(C, K) + product(C, K), skew(P)",
        CORE,
    ),
    Fault(
        "truncated rule: the projected matrix not projected (X = b / s is near)",
        "rules/truncated.py",
        "return project_out(Q[:, :k], up(X) / largest.astype(dtype))",
        "return 0 * project_out(Q[:, :k], up(X) / largest.astype(dtype))",
        TRUNCATED,
    ),
    Fault(
        "truncated rule: the projector of the right-hand side missing",
        "rules/truncated.py",
        "rhs = dAV - product(U, P), dAHU - product(V, adjoint(P))\n    X, Y = outside(A, U, V, lam",
        "rhs = dAV, dAHU\n    X, Y = outside(A, U, V, lam",
        TRUNCATED,
    ),
    Fault(
        "truncated rule, second order: wrong sign in the equation",
        "rules/truncated.py",
        "return times_core(X) - AY, times_core(Y) - AHX",
        "return times_core(X) + AY, times_core(Y) + AHX",
        TRUNCATED,
    ),
    Fault(
        "eigh rule: wrong sign of D",
        "rules/eigh.py",
        "return guarded_reciprocal(w[None, :] - w[:, None], degeneracy_tol * scale)",
        "return guarded_reciprocal(w[:, None] - w[None, :], degeneracy_tol * scale)",
        "tests/test_eigh.py -k 'written_rules or distinct_eigenvalues_that'",
    ),
    Fault(
        "Hermitian rule, second order: one of the two orders missing",
        "rules/hermitian.py",
        "(P_l[:, None] * Rl_[None, :] + R_l[:, None] * Pl_[None, :])",
        "(P_l[:, None] * Rl_[None, :] + P_l[:, None] * Rl_[None, :])",
        HERMITIAN,
    ),
    Fault(
        "Hermitian rule, third order: a weight of the quadrature",
        "rules/hermitian.py",
        "average = (9 * jnp.sum(bends[:4], axis=0) - 16 * bends[4]) / 20",
        "average = (9 * jnp.sum(bends[:4], axis=0) - 16 * bends[4]) / 24",
        HERMITIAN,
    ),
    Fault(
        "polar rule, second order: herm for skew",
        "rules/closed.py",
        "K = 2 * skew(M) * of_sum",
        "K = M * of_sum",
        "tests/test_linalg_derivatives.py -k 'polar or orthogonalize'",
    ),
    Fault(
        "pseudoinverse, second order: a dropped value counts as kept",
        "rules/closed.py",
        "to_z = jnp.where(three, 1, safe - z)",
        "to_z = jnp.where(three, 1, safe)",
        "tests/test_linalg_derivatives.py -k 'pinv or subspaces'",
    ),
    Fault(
        "gauge check: a - b for a + b",
        "rules/gauge.py",
        "magnitude(a_k + b_k, inner)",
        "magnitude(a_k - b_k, inner)",
        "tests/test_gauge.py -k gauge_check",
    ),
    Fault(
        "truncated eigenpairs: the part outside left out",
        "rules/eigenpairs.py",
        "dQ = dQ + outside(A, Q, lambda X: X * w[None, :].astype(X.dtype), rhs, numbers)",
        "dQ = dQ + 0 * outside(A, Q, lambda X: X * w[None, :].astype(X.dtype), rhs, numbers)",
        "tests/test_truncated_eigh.py -k exact_pairs",
    ),
    Fault(
        "reverse mode of a function of the spectrum: a conjugate dropped",
        "primitives/ruled.py",
        "conjugate = jnp.conj(cotangent)",
        "conjugate = cotangent",
        SECOND,
    ),
    Fault(
        "a function's body in place of the function and its rule",
        "primitives/ruled.py",
        "results = ruled_p.bind(*leaves,",
        "results = jaxpr_as_fun(body)(*leaves) or ruled_p.bind(*leaves,",
        "tests/test_ruled.py",
    ),
    Fault(
        "products: precision lowered",
        "algorithms/products.py",
        "PRECISION = lax.Precision.HIGHEST",
        "PRECISION = lax.Precision.HIGH",
        "tests/test_precision.py -k 'svd'",
    ),
    Fault(
        "products: the conjugate of the adjoint dropped",
        "algorithms/products.py",
        "return jnp.conj(a).mT",
        "return a.mT",
        "tests/test_operators.py -k 'test_products or linear_and_adjoint'",
    ),
    Fault(
        "CholeskyQR: what is good enough, 100 times larger",
        "algorithms/orthonormal.py",
        "good = jnp.linalg.norm(G - eye) < 0.5",
        "good = jnp.linalg.norm(G - eye) < 50",
        "tests/test_orthonormal.py",
    ),
    Fault(
        "Krylov: stops at 100 times the tolerance",
        "algorithms/krylov.py",
        "return enough & jnp.all(state.residuals <= config.tol * state.S[0])",
        "return enough & jnp.all(state.residuals <= 100 * config.tol * state.S[0])",
        "tests/test_truncated.py -k 'promised_residual'",
    ),
    Fault(
        "subspace iteration: its residual squared",
        "algorithms/subspace.py",
        "residuals = jnp.linalg.norm(Z - V * S[None, :].astype(V.dtype), axis=0)",
        "residuals = jnp.linalg.norm(Z - V * S[None, :].astype(V.dtype), axis=0) ** 2",
        "tests/test_truncated.py -k 'promised_residual or track'",
    ),
)


def occurrences(fault: Fault, root: Path = ROOT) -> int:
    """Return how often the text of a fault stands in its file; it must be once."""
    return (root / "jaxsvd" / fault.file).read_text().count(fault.text)


def copy(into: Path) -> None:
    """Copy what the tests need; the tables of results are not."""
    ignore = shutil.ignore_patterns("__pycache__", "results", ".pytest_cache")
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, into / name, ignore=ignore)
        else:
            shutil.copy(source, into / name)


def plant(fault: Fault, root: Path) -> None:
    """Put a fault into a copy of the tree."""
    path = root / "jaxsvd" / fault.file
    text = path.read_text()
    if text.count(fault.text) != 1:
        raise ValueError(
            f"{fault.file}: wanted this text once, got it {text.count(fault.text)} times: "
            f"{fault.text!r} ({fault.name})"
        )
    path.write_text(text.replace(fault.text, fault.wrong))


class Outcome(NamedTuple):
    """What the tests did in a copy: "passed", "failed: <test>" or what went wrong otherwise."""

    name: str
    text: str
    seconds: float

    @property
    def caught(self) -> bool:
        return self.text.startswith("failed")


def run_tests(name: str, root: Path, tests: str, cache: str) -> Outcome:
    """Run tests in a copy of the tree until the first fails; programs are kept between runs."""
    start = time.perf_counter()
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAXSVD_CACHE_DIR": cache,
    }
    command = f"{sys.executable} -m pytest -n 0 -x -q -p no:cacheprovider --durations=0 {tests}"
    try:
        run = subprocess.run(
            ["bash", "-c", command], cwd=root, env=environment, capture_output=True, text=True,
            timeout=LIMIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome(name, f"no result in {LIMIT} s", time.perf_counter() - start)
    failed = re.search(r"^FAILED (.+?)(?: - .*)?$", run.stdout, re.MULTILINE)
    if run.returncode == 0:
        text = "passed"
    elif run.returncode == 1 and failed:
        text = f"failed: {failed[1].removeprefix('tests/')}"
    else:
        text = f"pytest ended with {run.returncode}: {(run.stdout + run.stderr)[-300:]}"
    return Outcome(name, text, time.perf_counter() - start)


def outcomes(faults: Iterable[Fault], whole: bool) -> Iterator[Outcome]:
    """Yield the outcome of a copy without fault, then that of each fault."""
    faults = list(faults)
    cache = os.environ.get("JAXSVD_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        cache = cache or str(Path(folder, "compiled"))
        if whole:
            clean = Path(folder, "clean")
            clean.mkdir()
            copy(clean)
            for tests in sorted({fault.tests for fault in faults}):
                yield run_tests(f"no fault, {tests}", clean, tests, cache)
        for number, fault in enumerate(faults):
            root = Path(folder, str(number))
            root.mkdir()
            copy(root)
            plant(fault, root)
            yield run_tests(fault.name, root, fault.tests, cache)
            shutil.rmtree(root)


def is_right(outcome: Outcome) -> bool:
    """Return whether tests passed without a fault, or failed with one."""
    if outcome.name.startswith("no fault"):
        return outcome.text == "passed"
    return outcome.caught


def write(found: Iterable[Outcome], path: Path = RESULTS) -> None:
    """Write which test caught which fault."""
    rows = [o._asdict() | {"seconds": round(o.seconds)} for o in found]
    content = {"date": datetime.date.today().isoformat(), "hardware": hardware(), "outcomes": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")


def planted_faults(quick: bool) -> Iterator[Row]:
    """Yield the row of `benchmarks.trust`; all faults write benchmarks/results/mutations.json."""
    found = list(outcomes(FAULTS[:2] if quick else FAULTS, whole=not quick))
    if not quick:
        write(found)
    missed = tuple(Failure(o.name, o.text[:100]) for o in found if not is_right(o))
    count = sum(not o.name.startswith("no fault") for o in found)
    yield Row("faults planted in the source, each to be seen by a test", count, None, None, missed)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mutations", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--only", nargs="+", metavar="WORD", help="faults with one of these words")
    parser.add_argument("--skip-whole", action="store_true", help="no run without a fault")
    parser.add_argument("--json", type=Path, help="where the table goes")
    args = parser.parse_args(argv)
    chosen = [f for f in FAULTS if not args.only or any(word in f.name for word in args.only)]
    found = []
    for outcome in outcomes(chosen, not args.skip_whole):
        mark = "right" if is_right(outcome) else "WRONG"
        print(f"{mark}  {outcome.seconds:5.0f} s  {outcome.name:60}  {outcome.text}", flush=True)
        found.append(outcome)
    wrong = [outcome for outcome in found if not is_right(outcome)]
    caught = sum(outcome.caught for outcome in found)
    print(f"{caught} of {len(chosen)} faults caught")
    if args.json:
        write(found, args.json)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
