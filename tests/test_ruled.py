"""`ruled`: the rule counts in every transformation, not the derivative of the body.

The rules here are wrong on purpose, so that a rule that is lost shows: x^2 has the slope 7 x.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsvd.primitives.ruled import ruled


@ruled(static=(1,))
def square(x, name):
    """Return x^2, with a slope of 7 x."""
    assert name == "square"
    return x**2


@square.defjvp
def _square_jvp(name, primals, tangents):
    (x,), (dx,) = primals, tangents
    return square(x, name), 7 * x * dx


class Counted(NamedTuple):
    x: jax.Array
    count: jax.Array


@ruled()
def step(state: Counted) -> Counted:
    """Return x^2 and one more; integers have no tangent."""
    return Counted(state.x**2, state.count + 1)


@step.defjvp
def _step_jvp(primals, tangents):
    (state,), (d_state,) = primals, tangents
    assert d_state.count.dtype == jax.dtypes.float0
    return step(state), d_state._replace(x=7 * state.x * d_state.x)


@ruled(self_adjoint=1)
def multiply(A, xs):
    """Return A x for Hermitian A, with a derivative in A that is doubled."""
    return A @ xs[0]


@multiply.defjvp
def _multiply_jvp(primals, tangents):
    (A, xs), (dA, dxs) = primals, tangents
    return multiply(A, xs), 2 * dA @ xs[0] + multiply(A, dxs)


X = np.float64(3.0)
SLOPES = {
    "grad": lambda f: jax.grad(f),
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (1.0,))[1],
    "jit": lambda f: jax.jit(jax.grad(jax.jit(f))),
    "vmap": lambda f: lambda x: jax.vmap(jax.grad(f))(x[None])[0],
    "linearize": lambda f: lambda x: jax.linearize(f, x)[1](1.0),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
    "scan": lambda f: jax.grad(lambda x: lax.scan(lambda x, _: (f(x), None), x, None, 1)[0]),
    "map": lambda f: jax.grad(lambda x: lax.map(f, x[None])[0]),
    "cond": lambda f: jax.grad(lambda x: lax.cond(x > 0, f, jnp.sin, x)),
}


@pytest.mark.parametrize("one", SLOPES)
@pytest.mark.parametrize("two", SLOPES)
def test_the_rule_counts_at_first_and_second_order(one, two):
    def f(x):
        return square(x, "square")

    x = jnp.asarray(X)
    assert SLOPES[one](f)(x) == 7 * X
    # 7 x differentiated once more: the rule multiplies by x itself.
    assert SLOPES[two](SLOPES[one](f))(x) == 7
    # The slope of x^2 * x^2 by the rule is 14 x^3; that of x^3 again by the rule 7 x.
    assert SLOPES[two](SLOPES[one](lambda x: f(x) ** 2))(x) == 14 * (7 * X**2 + X**2)


def test_integers_have_no_tangent():
    state = Counted(jnp.asarray([1.0, 2.0]), jnp.asarray([3, 4]))

    def loss(x, count):
        found = step(Counted(x, count))
        return found.x + found.count.astype(x.dtype)

    for mapped in (lambda f: f, jax.jit):
        found = mapped(jax.vmap(jax.grad(loss)))(*state)
        np.testing.assert_array_equal(found, 7 * state.x)
    alone = jax.vmap(jax.grad(loss), (0, None))(state.x, jnp.asarray(5))
    np.testing.assert_array_equal(alone, 7 * state.x)


@pytest.mark.parametrize("batched", ["A", "x", "both"])
def test_transposes_of_lanes(batched):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((2, 3, 3)) + 1j * rng.standard_normal((2, 3, 3))
    A = A + np.conj(A.swapaxes(1, 2))
    x = rng.standard_normal((3, 2)) + 1j * rng.standard_normal((3, 2))
    axes = (None if batched == "x" else 0, None if batched == "A" else 1)
    A, x = (A[0] if batched == "x" else A), (x[:, 0] if batched == "A" else x)

    def through(multiply):
        y, pull = jax.vjp(lambda x: jax.vmap(lambda A, x: multiply(A, (x,)), axes)(A, x), x)
        return y, pull(jnp.conj(y) + 1)[0]

    for ours, wanted in zip(through(multiply), through(lambda A, xs: A @ xs[0]), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-14)


def test_what_has_no_transpose_says_so():
    with pytest.raises(AssertionError, match="no transpose in this argument"):
        jax.linear_transpose(lambda x: square(x, "square"), X)(X)
