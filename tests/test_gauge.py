"""gauge_check and diagnose: what they say of losses whose nature is known."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsvd
from jaxsvd.rules.gauge import gauge_dependence

WEIGHTS = np.random.default_rng(0).standard_normal((4, 4))


def with_spectrum(s, complex_=False, m=4, n=4):
    """Return a matrix with the given singular values, the same one for the same arguments."""
    rng = np.random.default_rng(1)

    def unitary(size):
        X = rng.standard_normal((size, size))
        if complex_:
            X = X + 1j * rng.standard_normal((size, size))
        return np.linalg.qr(X)[0]

    return jnp.asarray(unitary(m)[:, : len(s)] * np.asarray(s) @ unitary(n)[: len(s)])


def column(factor):
    return lambda r: jnp.sum(jnp.real(factor(r)) * WEIGHTS[0])


LOSSES = {
    "one vector of U": (column(lambda r: r.U[:, 0]), "columns 0 and 1 of U "),
    "one vector of V": (column(lambda r: r.Vh[1]), "columns 0 and 1 of Vh "),
    "projector": (lambda r: jnp.sum(jnp.real(r.U[:, :2] @ r.U[:, :2].conj().T) * WEIGHTS), None),
    "product": (lambda r: jnp.sum(jnp.real(r.U[:, :2] @ r.Vh[:2]) * WEIGHTS), None),
    "values": (lambda r: jnp.sum(r.S**2), None),
}


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_gauge_check_names_the_pair_and_is_silent_otherwise(name, complex_):
    loss, expected = LOSSES[name]
    A = with_spectrum([3.0, 3.0, 2.0, 1.0], complex_)

    def under(on):
        return jax.jit(jax.grad(lambda A: loss(jaxsvd.gauge_check(jaxsvd.svd(A), on))))

    plain = jax.jit(jax.grad(lambda A: loss(jaxsvd.svd(A))))(A)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gradient = under("warn")(A)
        jax.effects_barrier()
    np.testing.assert_allclose(gradient, plain, atol=1e-12)
    messages = [str(w.message) for w in caught if w.category is jaxsvd.GaugeWarning]
    marked = under("nan")(A)
    if expected is None:
        assert not messages
        np.testing.assert_allclose(marked, plain, atol=1e-12)
        under("raise")(A).block_until_ready()
        jax.effects_barrier()
        return
    assert len(messages) == 1
    assert "of its cotangent" in messages[0]
    if not complex_:  # with complex factors the phase of a single column may be the larger part
        assert expected in messages[0]
    assert bool(jnp.isnan(marked).all())
    with pytest.raises(Exception, match="which the matrix does not determine"):  # noqa: PT012
        under("raise")(A).block_until_ready()
        jax.effects_barrier()


def test_gauge_check_leaves_forward_mode_and_values_alone():
    A = with_spectrum([3.0, 3.0, 2.0, 1.0])
    E = jnp.asarray(WEIGHTS)
    checked = lambda A: jaxsvd.gauge_check(jaxsvd.svd(A), "raise")  # noqa: E731
    value, tangent = jax.jvp(checked, (A,), (E,))
    expected, expected_tangent = jax.jvp(jaxsvd.svd, (A,), (E,))
    for x, y in zip((*value, *tangent), (*expected, *expected_tangent), strict=True):
        np.testing.assert_array_equal(x, y)


def test_gauge_check_reports_each_lane_of_a_batch():
    tied, distinct = with_spectrum([3.0, 3.0, 2.0, 1.0]), with_spectrum([4.0, 3.0, 2.0, 1.0])
    loss = LOSSES["one vector of U"][0]
    batched = jax.vmap(jax.grad(lambda A: loss(jaxsvd.gauge_check(jaxsvd.svd(A), "nan"))))
    gradients = batched(jnp.stack([tied, distinct]))
    assert bool(jnp.isnan(gradients[0]).all())
    assert bool(jnp.isfinite(gradients[1]).all())
    stacked = jaxsvd.gauge_check(jaxsvd.svd(jnp.stack([tied, distinct])))
    assert stacked.U.shape == (2, 4, 4)


def test_null_space_and_extra_columns_count_separately():
    A = with_spectrum([2.0, 1.0], m=4, n=3)
    result = jaxsvd.svd(A)
    zero = jax.tree.map(jnp.zeros_like, result)
    gU = zero._replace(U=zero.U.at[:, 3].set(jnp.asarray(WEIGHTS[0])))
    dependence = gauge_dependence(result, gU)
    assert float(dependence.left.max()) > 0.01
    assert float(dependence.right.max()) == 0
    projector = jax.grad(lambda r: jnp.sum((r.U[:, 2:] @ r.U[:, 2:].T) * WEIGHTS))(result)
    assert float(gauge_dependence(result, projector).size()) < 1e-12


def test_phase_of_a_complex_pair_is_reported():
    A = with_spectrum([4.0, 3.0, 2.0, 1.0], complex_=True)
    result = jaxsvd.svd(A)
    cotangent = jax.grad(lambda r: jnp.real(r.U[0, 0]) + jnp.imag(r.U[1, 0]))(result)
    assert float(gauge_dependence(result, cotangent).pair[0, 0]) > 0.01
    free = jax.grad(lambda r: jnp.abs(r.U[0, 0] * r.Vh[0, 1]))(result)
    assert float(gauge_dependence(result, free).size()) < 1e-12


def balanced(svd):
    def loss(A):
        U, S, Vh = svd(A, full_matrices=False)
        return jnp.sum((U * jnp.sqrt(S)[None, :] @ Vh) * jnp.asarray(WEIGHTS[:3, :3], A.dtype))

    return loss


DIAGNOSES = {
    "raw triplets at a tie": (balanced(jaxsvd.svd), "map"),
    "the same in jnp": (balanced(jnp.linalg.svd), "jnp"),
    "a sum of raw values at a tie": (lambda A: jnp.sum(jnp.log1p(jaxsvd.svd(A).S)), "sum"),
    "a vector of a tied pair": (lambda A: jnp.sum(jaxsvd.svd(A).U[:, 0] ** 3), "basis"),
    "spectral_map": (lambda A: jnp.sum(jaxsvd.spectral_map(jnp.sin, A)[0]), "svd"),
}


@pytest.mark.parametrize("name", DIAGNOSES)
def test_diagnose_names_the_function_to_use(name):
    loss, advice = DIAGNOSES[name]
    A = with_spectrum([2.0, 2.0, 1.0], m=3, n=3)
    report = jaxsvd.diagnose(loss, A)
    assert report.advice == advice
    assert report.ties == ((0, 1),)
    assert report.zeros == 0
    assert report.depends_on_basis == (advice == "basis")
    assert report.raw_calls == (1 if advice == "jnp" else 0)
    if advice == "svd":
        assert report.gradient_digits > 9
        assert report.hessian_digits > 7
    text = str(report)
    assert "s[0] = s[1] = 2" in text
    assert len(text.splitlines()) == 9


def test_diagnose_at_distinct_values_sees_phase_and_gaps():
    A = with_spectrum([2.0, 1.9999, 1.0], m=3, n=3)
    report = jaxsvd.diagnose(lambda A: jnp.sum(jaxsvd.svd(A).U[:, 0] * WEIGHTS[0, :3]), A)
    assert report.advice == "phase"
    assert report.depends_on_phase
    assert not report.depends_on_basis
    assert report.gaps[0][:2] == (0, 1)
    assert 0.9 < report.gaps[0][3] < 1.1  # this gap makes nearly all of the gradient
    assert 4e-5 < report.gaps[0][2] < 6e-5
    assert report.gradient_digits > 6


def test_diagnose_sees_through_jit():
    loss = jax.jit(lambda A: jnp.sum(jaxsvd.svd(A).U[:, 0] ** 3))
    A = with_spectrum([2.0, 2.0, 1.0], m=3, n=3)
    loss(A)  # compiled before it is observed
    assert jaxsvd.diagnose(loss, A).calls == 1


def test_bad_input_of_both():
    A = jnp.eye(3)
    with pytest.raises(TypeError, match="diagnose: `loss` must be a function, got int 3"):
        jaxsvd.diagnose(3, A)
    with pytest.raises(ValueError, match="diagnose: `A` must be one finite matrix"):
        jaxsvd.diagnose(jnp.sum, jnp.full((2, 2), jnp.nan))
    with pytest.raises(ValueError, match=r"`loss` must return a real scalar, got .*3, 3"):
        jaxsvd.diagnose(lambda A: A, A)
    with pytest.raises(TypeError, match="diagnose: `A` must be a concrete array, got a traced"):
        jax.jit(lambda A: jaxsvd.diagnose(jnp.sum, A).zeros)(A)
    with pytest.raises(ValueError, match="gauge_check: `on` must be one of 'warn', 'nan', 'raise'"):
        jaxsvd.gauge_check(jaxsvd.svd(A), "loud")
    with pytest.raises(TypeError, match="gauge_check: `result` must be the triple"):
        jaxsvd.gauge_check(A)
