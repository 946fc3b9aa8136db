"""The Hermitian half of the derivative table; as test_derivatives, whose oracle's sister it has."""

import itertools

import numpy as np
import pytest

from benchmarks import eigenoracle
from benchmarks.cells import HERMITIAN, cells
from benchmarks.eigenlibraries import with_jaxsvd
from benchmarks.eigenproblems import LOSSES, PROBLEMS, defined, value

ROUNDING = 500


def amplification(problem):
    """Return what 1/(w_i - w_j) makes of rounding in either mode, for gaps that are not masked."""
    w = np.sort(problem.spectrum)
    gaps = np.diff(w) / np.maximum(np.maximum(np.abs(w[1:]), np.abs(w[:-1])), 1e-300)
    kept = gaps[gaps > np.finfo(problem.a.dtype).eps ** 0.75]
    return 1 / (10 * kept.min(initial=1.0))


ALL = [pytest.param(problem, id=problem.name) for problem in PROBLEMS]
MARKED = [
    pytest.param(problem, id=problem.name, marks=pytest.mark.x32)
    if "float32" in problem.tags
    else pytest.param(problem, id=problem.name)
    for problem in PROBLEMS
]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("problem", MARKED)
def test_derivatives(problem, order):
    found = list(cells("jaxsvd", problem, order, HERMITIAN))
    wrong = [
        f"{cell.loss}, {cell.mode}: {cell.outcome}"
        for cell in found
        if cell.representable and not cell.passed
    ]
    assert not wrong
    # Powers without a unit leave the range at extreme scales, and nothing else does.
    beyond = {cell.loss for cell in found if not cell.representable}
    assert beyond <= ({"sum w^2", "sum w^4"} if "scaled" in problem.tags else set())


@pytest.mark.parametrize("problem", MARKED)
def test_forward_mode_is_reverse_mode_transposed(problem):
    eps = np.finfo(problem.a.dtype).eps
    for loss in LOSSES:
        if not defined(problem, loss, 1):
            continue
        outcomes = with_jaxsvd(problem, loss, 1)
        with np.errstate(over="ignore"):
            forward, reverse = outcomes["jvp"], outcomes["vjp"] * problem.unit
        if np.all(np.isfinite(forward)) and np.all(np.isfinite(reverse)):
            size = max(np.abs(forward).max(), 1) * max(ROUNDING, amplification(problem))
            np.testing.assert_allclose(forward, reverse, rtol=0, atol=eps * size)


def richardson(difference, h: float) -> np.ndarray:
    """Extrapolate a difference quotient with an even error from steps h, h/2, h/4."""
    d = [np.array(difference(h / 2**i)) for i in range(3)]
    d = [(4 * y - x) / 3 for x, y in itertools.pairwise(d)]
    return (16 * d[1] - d[0]) / 15


@pytest.mark.parametrize(
    "problem", [p for p in ALL if not {"scaled"} & p.values[0].tags and "spread" not in p.id]
)
def test_oracle_agrees_with_finite_differences_of_numpy(problem):
    wide = np.result_type(problem.a.dtype, np.float64)
    a, E = problem.a.astype(wide), problem.directions.astype(wide)
    exact = eigenoracle.derivatives(problem)
    losses = [loss for loss in LOSSES if loss.name in exact]

    def values(a):
        arrays = (a, *problem.weights, problem.other.astype(wide))
        return np.array([value(np, loss, problem, np.linalg.eigh, arrays) for loss in losses])

    def second(h, d, e):
        plus, minus = h * (d + e), h * (d - e)
        return (values(a + plus) - values(a + minus) - values(a - minus) + values(a - plus)) / (
            4 * h**2
        )

    firsts = np.array(
        [
            richardson(lambda h, e=e: (values(a + h * e) - values(a - h * e)) / (2 * h), 2**-9)
            for e in E
        ]
    )
    seconds = np.array([richardson(lambda h, e=e: second(h, E[0], e), 2**-7) for e in E])
    for i, loss in enumerate(losses):
        for got, wanted, bar in (
            (firsts[:, i], exact[loss.name].first, 1e-7),
            (seconds[:, i], exact[loss.name].second, 1e-4),
        ):
            if wanted is None:
                continue
            wanted = np.array([float(x) for x in wanted])
            error = np.max(np.abs(got - wanted)) / max(np.max(np.abs(wanted)), 1)
            assert error < bar, (loss.name, error)


@pytest.mark.parametrize("problem", ALL)
def test_problems_are_what_their_names_say(problem):
    eps = np.finfo(problem.a.dtype).eps
    a = problem.a / problem.a.real.dtype.type(problem.unit)
    np.testing.assert_array_equal(a, a.conj().T)
    w = np.linalg.eigvalsh(a)[::-1]
    np.testing.assert_allclose(w, problem.spectrum, rtol=0, atol=20 * eps)
    if "exact" in problem.name:  # in 50 digits, not in 16
        eigh = eigenoracle.Evaluator(problem).eigh
        exact = eigh(eigenoracle.matrix(problem.a), eigvals_only=True)
        pairs = zip(sorted(exact)[::-1], problem.spectrum, strict=True)
        assert max(abs(x - float(y)) for x, y in pairs) < 1e-40
