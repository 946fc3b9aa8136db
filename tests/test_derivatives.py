"""The derivative table: kinds of matrix x gauge-free losses x jvp, vjp, Hessian-vector products.

The cells are those of `python -m benchmarks.derivatives`; their oracle is 50-digit arithmetic, and
the oracle in turn is held against finite differences of NumPy. One test for each kind of matrix and
order of derivative; compiled programs are shared by matrices of one shape and dtype.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsvd
from benchmarks import oracle
from benchmarks.cells import Cell, cells
from benchmarks.derivatives import MARKERS, entry, not_representable, update
from benchmarks.libraries import derivatives_of, with_jaxsvd
from benchmarks.losses import LOSSES, defined, form, value
from benchmarks.problems import BY_NAME, PROBLEMS

# A cell of jvp and one of vjp are transposes of one program: they agree to rounding.
ROUNDING = 200


ALL = [pytest.param(problem, id=problem.name) for problem in PROBLEMS]
MARKED = [
    pytest.param(problem, id=problem.name, marks=pytest.mark.x32)
    if "float32" in problem.tags
    else pytest.param(problem, id=problem.name)
    for problem in PROBLEMS
]


def failures(problem, order: int) -> list[str]:
    return [
        f"{cell.loss}, {cell.mode}: {cell.outcome}"
        for cell in cells("jaxsvd", problem, order)
        if cell.representable and not cell.passed
    ]


@pytest.mark.parametrize("problem", MARKED)
def test_first_derivatives(problem):
    assert not failures(problem, 1)


@pytest.mark.parametrize("problem", MARKED)
def test_second_derivatives(problem):
    assert not failures(problem, 2)


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
            np.testing.assert_allclose(
                forward, reverse, rtol=0, atol=ROUNDING * eps * max(np.abs(forward).max(), 1)
            )


def test_only_powers_without_a_unit_leave_the_range():
    found = [
        cell
        for problem in PROBLEMS
        if "scaled" in problem.tags and "float64" in problem.tags
        for order in (1, 2)
        for cell in cells("jaxsvd", problem, order)
    ]
    names = {(cell.loss, cell.mode) for cell in found if not cell.representable}
    every_mode = ("jvp", "vjp", "forward-reverse", "reverse-forward", "reverse-reverse")
    # The slope of sum s^2 along A is 1e320; its gradient 2 A is in range, and right.
    assert names == {("sum s^2", "jvp"), *(("sum s^4", mode) for mode in every_mode)}


# ---------------------------------------------------------------------------------- the oracle


def richardson(difference, h: float) -> np.ndarray:
    """Extrapolate a difference quotient with an even error from steps h, h/2, h/4."""
    d = [np.array(difference(h / 2**i)) for i in range(3)]
    d = [(4 * y - x) / 3 for x, y in itertools.pairwise(d)]
    return (16 * d[1] - d[0]) / 15


def numpy_values(problem, losses):
    """A -> the losses by NumPy in double precision."""

    def values(a):
        def svd(full_matrices):
            return np.linalg.svd(a, full_matrices=full_matrices)

        with np.errstate(over="ignore"):
            return np.array([value(np, x, problem, svd, problem.weights) for x in losses])

    return values


@pytest.mark.parametrize("problem", ALL)
def test_oracle_agrees_with_finite_differences_of_numpy(problem):
    a = problem.a.astype(np.result_type(problem.a.dtype, np.float64))
    E = problem.directions.astype(a.dtype) * problem.unit
    exact = oracle.derivatives(problem)
    smooth = [
        loss
        for loss in LOSSES
        if loss.name in exact
        and all(getattr(problem, need) for need in loss.needs_second)  # a kink in f' at s = 0
        and not ("scaled" in problem.tags and loss.name in ("sum s^2", "sum s^4"))
    ]
    values = numpy_values(problem, smooth)

    def first(h, d):
        return (values(a + h * d) - values(a - h * d)) / (2 * h)

    def second(h, d, e):
        plus, minus = h * (d + e), h * (d - e)
        return (values(a + plus) - values(a + minus) - values(a - minus) + values(a - plus)) / (
            4 * h**2
        )

    firsts = np.array([richardson(lambda h, e=e: first(h, e), 2**-9) for e in E])
    seconds = np.array([richardson(lambda h, e=e: second(h, E[0], e), 2**-7) for e in E])
    for i, loss in enumerate(smooth):
        for got, wanted, bar in (
            (firsts[:, i], exact[loss.name].first, 1e-8),
            (seconds[:, i], exact[loss.name].second, 1e-5),
        ):
            if wanted is None:
                continue
            wanted = np.array([float(x) for x in wanted])
            error = np.max(np.abs(got - wanted)) / max(np.max(np.abs(wanted)), 1)
            assert error < bar, (loss.name, error)


@pytest.mark.parametrize("problem", ALL)
def test_problems_are_what_their_names_say(problem):
    eps = np.finfo(problem.a.dtype).eps
    S = np.linalg.svd(problem.a / problem.a.real.dtype.type(problem.unit), compute_uv=False)
    np.testing.assert_allclose(S, problem.spectrum, rtol=0, atol=20 * eps)
    U, Vh = problem.U, problem.Vh
    np.testing.assert_allclose(U.conj().T @ U, np.eye(U.shape[1]), atol=1e-14)
    np.testing.assert_allclose(Vh @ Vh.conj().T, np.eye(Vh.shape[0]), atol=1e-14)
    if "exact" in problem.name:  # in 50 digits, not in 16
        svd = oracle.mp.svd_c if np.iscomplexobj(problem.a) else oracle.mp.svd_r
        exact = svd(oracle.matrix(problem.a), compute_uv=False)
        assert max(abs(s - float(t)) for s, t in zip(exact, problem.spectrum, strict=True)) < 1e-40


# ------------------------------------------------------------------------------- constant rank


@pytest.mark.parametrize("name", ["rank-deficient", "rank-deficient, tied"])
def test_polar_factor_of_a_deficient_matrix_along_matrices_of_its_rank(name):
    # U V^H itself is not determined there, A^H U V^H = (A^H A)^(1/2) is, and it has a derivative
    # along (I + t X) A (I + t Y), whose rank is constant.
    problem = BY_NAME[name]
    A = problem.a if "tied" in name else (problem.U * problem.spectrum) @ problem.Vh
    m, n = A.shape
    rng = np.random.default_rng(3)
    X, Y = rng.standard_normal((m, m)), rng.standard_normal((n, n))
    weights = problem.weights["right"]

    def root(t):
        B = (np.eye(m) + t * X) @ A @ (np.eye(n) + t * Y)
        _, S, Vh = np.linalg.svd(B, full_matrices=False)
        return form((Vh.T * S) @ Vh, weights)

    def loss(A):
        return form(A.T @ jaxsvd.spectral_map(jnp.ones_like, A), weights)

    wanted = richardson(lambda h: (root(h) - root(-h)) / (2 * h), 2**-9)
    dA = X @ A + A @ Y
    got = jax.jit(derivatives_of(loss, 1))(A, dA)
    np.testing.assert_allclose(got["jvp"], wanted, rtol=1e-8)
    np.testing.assert_allclose(np.sum(got["vjp"] * dA), wanted, rtol=1e-8)


# ------------------------------------------------------------------------------------ the table


def cell(error, *, representable=True, mode="jvp"):
    passed = error is not None and error <= 2e-6
    return Cell("jaxsvd", "tall", "sum s", 1, mode, error, passed, representable)


def test_entries_count_what_passed_and_say_what_did_not():
    good, bad, nan, raised = cell(3e-16), cell(0.25), cell(float("nan")), cell(None)
    unrepresentable = cell(float("nan"), representable=False)
    assert entry([good, good]) == "2/2, 3e-16"
    assert entry([good, unrepresentable]) == "1/1, 3e-16"
    assert entry([good, bad, nan, raised]) == "1/4, 1 NaN, 1 raise, 2e-01"
    assert not_representable([good, unrepresentable]) == ["tall: sum s, jvp"]


def test_update_replaces_what_stands_between_the_markers(tmp_path):
    begin, end = MARKERS
    path = tmp_path / "README.md"
    path.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    update(path, "new")
    assert path.read_text() == f"before\n{begin}\nnew\n{end}\nafter\n"
    path.write_text("no markers")
    with pytest.raises(SystemExit, match="once each"):
        update(path, "new")
