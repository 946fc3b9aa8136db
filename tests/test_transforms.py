"""Every transformation of JAX on every primitive, against the plain eager result.

Each loss is gauge-free, so that its derivatives exist to second order, and takes leading axes.
The Hessian to compare with is made of finite differences of the eager gradient's compiled twin.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsvd
from tests.helpers import (
    COMPLEX128,
    FLOAT32,
    FLOAT64,
    assert_same_bits,
    assert_within,
    gaussian,
    like,
    well_separated,
)

WEIGHT = gaussian((4, 3), np.complex128, 11)


def weighted(weight: np.ndarray, x: jax.Array) -> jax.Array:
    """Re sum w x over the last two axes, in the precision of x."""
    if not jnp.iscomplexobj(x):
        return jnp.einsum("ij,...ij->...", jnp.asarray(weight.real, x.dtype), x)
    return jnp.real(jnp.einsum("ij,...ij->...", jnp.asarray(weight, x.dtype), x))


def bounded(s):
    return s / (1 + s * s)


def svd_loss(a):
    U, S, Vh = jaxsvd.svd(a, full_matrices=False)
    largest = S[..., None, :1].astype(U.dtype)
    return weighted(WEIGHT, U[..., :1] * largest @ Vh[..., :1, :])


def svdvals_loss(a):
    return jnp.sum(jaxsvd.svdvals(a) ** 3, axis=-1)


def core_svd_loss(a):
    U, C, Vh = jaxsvd.core_svd(a, 2)
    return weighted(WEIGHT, U @ C @ C @ C @ Vh)


def low_rank_loss(a):
    return weighted(WEIGHT, jaxsvd.low_rank(a, 2))


def spectral_map_loss(a):
    return weighted(WEIGHT, jaxsvd.spectral_map(bounded, a))


def spectral_sum_loss(a):
    return jaxsvd.spectral_sum(bounded, a)


def core_map_loss(a):
    return weighted(WEIGHT[:3], jaxsvd.core_map(jnp.sin, jnp.conj(a).mT @ a))


LOSSES = {
    "svd": svd_loss,
    "svdvals": svdvals_loss,
    "core_svd": core_svd_loss,
    "low_rank": low_rank_loss,
    "spectral_map": spectral_map_loss,
    "spectral_sum": spectral_sum_loss,
    "core_map": core_map_loss,
}

STACK = jnp.asarray(np.stack([well_separated(4, 3, seed=10 * i) for i in range(8)]) / 2)
TANGENTS = jnp.asarray(gaussian((8, 4, 3), seed=99))
A, E = STACK[0], TANGENTS[0]


@functools.cache
def eager(name: str) -> SimpleNamespace:
    """The plain results: values, gradients, slopes of the stack; the Hessian at its first."""
    loss = LOSSES[name]
    values, gradients = zip(*[jax.value_and_grad(loss)(a) for a in STACK], strict=True)
    gradients = np.stack(gradients)
    slopes = np.sum(gradients * np.asarray(TANGENTS), axis=(1, 2))
    return SimpleNamespace(
        value=values[0],
        values=np.stack(values),
        gradient=gradients[0],
        gradients=gradients,
        slope=slopes[0],
        slopes=slopes,
    )


@functools.cache
def hessian(name: str) -> np.ndarray:
    step = 1e-4
    steps = step * np.eye(A.size).reshape(A.size, *A.shape)
    gradients = jax.jit(jax.vmap(jax.grad(LOSSES[name])))
    up, down = (np.asarray(gradients(np.asarray(A) + sign * steps)) for sign in (1, -1))
    return ((up - down) / (2 * step)).reshape(*A.shape, *A.shape)


def scan_over_stack(loss):
    def total(stack):
        return lax.scan(lambda sum_, a: (sum_ + loss(a), None), jnp.zeros(()), stack)[0]

    return jax.jit(jax.grad(total))(STACK)


def vmap_over_nothing_batched(loss):
    shares = jnp.array([0.5, 0.25, 0.25])
    return jax.jit(jax.grad(lambda a: jnp.sum(jax.vmap(lambda t: t * loss(a))(shares))))(A)


# What each transformation of a loss gives, and the name of what it must be equal to.
FIRST_ORDER = {
    "jit": (lambda f: jax.jit(f)(A), "value"),
    "vmap": (lambda f: jax.jit(jax.vmap(f))(STACK), "values"),
    "jvp": (lambda f: jax.jit(lambda a, e: jax.jvp(f, (a,), (e,))[1])(A, E), "slope"),
    "vjp": (lambda f: jax.jit(lambda a: jax.vjp(f, a)[1](jnp.ones(()))[0])(A), "gradient"),
    "linearize": (lambda f: jax.linearize(jax.jit(f), A)[1](E), "slope"),
    "jacfwd": (lambda f: jax.jit(jax.jacfwd(f))(A), "gradient"),
    "jacrev": (lambda f: jax.jit(jax.jacrev(f))(A), "gradient"),
    "vmap of grad": (lambda f: jax.jit(jax.vmap(jax.grad(f)))(STACK), "gradients"),
    "grad of vmap": (
        lambda f: jax.jit(jax.grad(lambda x: jax.vmap(f)(x).sum()))(STACK),
        "gradients",
    ),
    "vmap of jvp": (
        lambda f: jax.jit(jax.vmap(lambda a, e: jax.jvp(f, (a,), (e,))[1]))(STACK, TANGENTS),
        "slopes",
    ),
    "vmap over nothing batched": (vmap_over_nothing_batched, "gradient"),
    "checkpoint": (lambda f: jax.jit(jax.grad(jax.checkpoint(f)))(A), "gradient"),
    "scan": (scan_over_stack, "gradients"),
}

SECOND_ORDER = {
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f)),
    "forward over reverse": lambda f: jax.jacfwd(jax.jacrev(f)),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f)),
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f)),
}

# Hessian-vector products H e.
PRODUCTS = {
    "forward over reverse": lambda f, a, e: jax.jvp(jax.grad(f), (a,), (e,))[1],
    "reverse over forward": lambda f, a, e: jax.grad(lambda a: jax.jvp(f, (a,), (e,))[1])(a),
    "reverse over reverse": lambda f, a, e: jax.grad(lambda a: jnp.sum(jax.grad(f)(a) * e))(a),
}


@pytest.mark.parametrize("transform", FIRST_ORDER)
@pytest.mark.parametrize("name", LOSSES)
def test_first_order(name, transform):
    function, expected = FIRST_ORDER[transform]
    assert_within(function(LOSSES[name]), getattr(eager(name), expected), 200)


def assert_near_finite_differences(actual, expected):
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("order", SECOND_ORDER)
@pytest.mark.parametrize("name", LOSSES)
def test_hessian(name, order):
    actual = jax.jit(SECOND_ORDER[order](LOSSES[name]))(A)
    assert_near_finite_differences(actual, hessian(name))


@pytest.mark.parametrize("name", LOSSES)
def test_hessian_vector_product_of_complex_matrices(name):
    def of_parts(x):  # a real function of (real part, imaginary part)
        return LOSSES[name](lax.complex(x[0], x[1]))

    complex_a = well_separated(4, 3, np.complex128) / 2
    x, e = jnp.stack([complex_a.real, complex_a.imag]), TANGENTS[:2]

    @jax.jit
    def products_and_differences(x, e):
        steps = 1e-4 * jnp.stack([e, -e])
        up, down = jax.vmap(lambda step: jax.grad(of_parts)(x + step))(steps)
        # The two orders that go wrong where a rule is lost in transposition.
        orders = "forward over reverse", "reverse over reverse"
        return [PRODUCTS[order](of_parts, x, e) for order in orders], (up - down) / 2e-4

    products, differences = products_and_differences(x, e)
    for product in products:
        assert_near_finite_differences(product, differences)


@pytest.mark.parametrize("name", LOSSES)
def test_without_jit(name):
    with jax.disable_jit():
        value, gradient = jax.value_and_grad(LOSSES[name])(A)
    assert_within((value, gradient), (eager(name).value, eager(name).gradient), 200)


@pytest.mark.x32
@pytest.mark.parametrize("name", LOSSES)
def test_single_precision(name):
    """Also with x64 off; the Hessian against differences of the gradient in single precision."""
    loss, a, e = LOSSES[name], A.astype(np.float32), E.astype(np.float32)

    @jax.jit
    def compiled(a, e):
        step = jnp.float32(3e-3)
        near = jnp.stack([a, a + step * e, a - step * e])
        values, (gradient, up, down) = jax.vmap(jax.value_and_grad(loss))(near)
        product = PRODUCTS["forward over reverse"](loss, a, e)
        return (values[0], gradient), product, (up - down) / (2 * step)

    first, product, differences = compiled(a, e)
    assert {x.dtype for x in (*first, product)} == {jnp.dtype("float32")}
    assert_within(first, jax.value_and_grad(loss)(a), 200)
    scale = float(jnp.abs(differences).max())
    np.testing.assert_allclose(product, differences, rtol=0, atol=1e-2 * scale)


# ------------------------------------------------------------------------------------ sharding


def shard(mesh, x):
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("batch",))


def over_shards(mesh, function):
    spec = PartitionSpec("batch")
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)


@pytest.mark.parametrize("name", LOSSES)
def test_shard_map_of_gradient(name, mesh):
    gradients = jax.jit(over_shards(mesh, jax.vmap(jax.grad(LOSSES[name]))))(shard(mesh, STACK))
    assert_within(gradients, eager(name).gradients, 200)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_of_shard_map(name, mesh):
    mapped = over_shards(mesh, jax.vmap(LOSSES[name]))
    gradients = jax.jit(jax.grad(lambda x: jnp.sum(mapped(x))))(shard(mesh, STACK))
    assert_within(gradients, eager(name).gradients, 200)


@pytest.mark.parametrize("name", LOSSES)
def test_jvp_of_shard_map(name, mesh):
    mapped = over_shards(mesh, jax.vmap(LOSSES[name]))
    jvp = jax.jit(lambda x, e: jax.jvp(mapped, (x,), (e,)))
    values, slopes = jvp(shard(mesh, STACK), shard(mesh, TANGENTS))
    assert_within((values, slopes), (eager(name).values, eager(name).slopes), 200)


@pytest.mark.parametrize("name", LOSSES)
def test_hessian_vector_product_of_shard_map(name, mesh):
    mapped = over_shards(mesh, jax.vmap(LOSSES[name]))

    @jax.jit
    def product(x, e):
        return PRODUCTS["forward over reverse"](lambda x: jnp.sum(mapped(x)), x, e)

    first = np.asarray(product(shard(mesh, STACK), shard(mesh, TANGENTS)))[0]
    assert_near_finite_differences(first, np.tensordot(hessian(name), np.asarray(E), 2))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
@pytest.mark.parametrize("name", LOSSES)
def test_batch_sharded_over_a_mesh(name, axis_type):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    function = jax.jit(jax.vmap(jax.value_and_grad(LOSSES[name])))
    values, gradients = function(shard(mesh, STACK))
    assert_within((values, gradients), (eager(name).values, eager(name).gradients), 200)


# ------------------------------------------------- parameters that a spectral function closes over


def resolvent(t, a):
    """U s/(1 + t s^2) V^H."""
    return jaxsvd.spectral_map(lambda s: s / (1 + t * s * s), a)


def resolvent_by_solve(t, a):
    """The same without singular values: (I + t A A^H)^-1 A."""
    return jnp.linalg.solve(jnp.eye(4, dtype=a.dtype) + t.astype(a.dtype) * a @ jnp.conj(a).mT, a)


def log_determinant(t, a):
    return jaxsvd.spectral_sum(lambda s: jnp.log1p(t * s * s), a)


def log_determinant_by_lu(t, a):
    return jnp.linalg.slogdet(jnp.eye(4, dtype=a.dtype) + t.astype(a.dtype) * a @ jnp.conj(a).mT)[1]


def hermitian_inverse(t, a):
    return jaxsvd.core_map(lambda w: 1 / (1 + t * w), jnp.conj(a).mT @ a)


def hermitian_inverse_by_lu(t, a):
    return jnp.linalg.inv(jnp.eye(3, dtype=a.dtype) + t.astype(a.dtype) * jnp.conj(a).mT @ a)


def scalar_loss(function):
    def loss(t, a):
        out = function(t, a)
        return out if out.ndim == 0 else weighted(WEIGHT[: out.shape[0]], out)

    return loss


PARAMETRIC = {
    "spectral_map": (scalar_loss(resolvent), scalar_loss(resolvent_by_solve)),
    "spectral_sum": (scalar_loss(log_determinant), scalar_loss(log_determinant_by_lu)),
    "core_map": (scalar_loss(hermitian_inverse), scalar_loss(hermitian_inverse_by_lu)),
}

T = jnp.asarray(0.7)


@pytest.mark.parametrize("dtype", [FLOAT64, COMPLEX128, FLOAT32])
@pytest.mark.parametrize("name", PARAMETRIC)
def test_scalar_parameter(name, dtype):
    a = jnp.asarray(well_separated(4, 3, dtype) / 2)
    t = T.astype(np.finfo(dtype).dtype)

    def derivatives(loss):
        slope = jax.jvp(lambda t: loss(t, a), (t,), (jnp.ones_like(t),))[1]
        return slope, jax.grad(loss, argnums=(0, 1))(t, a)

    ours, closed_form = (jax.jit(derivatives, static_argnums=0)(loss) for loss in PARAMETRIC[name])
    assert ours[0].dtype == t.dtype
    assert_within(ours, closed_form, 200)


@pytest.mark.parametrize("order", PRODUCTS)
@pytest.mark.parametrize("name", PARAMETRIC)
def test_second_order_in_the_parameter_and_mixed(name, order):
    """H e for a direction e that moves parameter and matrix: every block of H enters."""
    both = jnp.concatenate([jnp.full((1, 3), T), A])  # the parameter is entry (0, 0)
    e = like(both, seed=3)

    def product(loss):
        return jax.jit(
            lambda both: PRODUCTS[order](lambda both: loss(both[0, 0], both[1:]), both, e)
        )(both)

    ours, closed_form = (product(loss) for loss in PARAMETRIC[name])
    assert_within(ours, closed_form, 200)


def cubic(c, a):
    return jaxsvd.spectral_map(lambda s: c["linear"] * s + c["cubic"][1] * s**3, a)


def cubic_by_products(c, a):
    return c["linear"] * a + c["cubic"][1] * a @ a.mT @ a


@pytest.mark.parametrize(
    "transform", ["eager", "jit", "vmap over parameters", "vmap over both", "vmap over matrices"]
)
def test_several_parameters(transform):
    rows = 1 if "parameters" not in transform and "both" not in transform else 8
    c = {"linear": jnp.linspace(0.5, 1, rows), "cubic": jnp.asarray(gaussian((rows, 2)))}
    first = jax.tree.map(lambda x: x[0], c)

    def transformed(function):
        def gradients(c, a):
            return jax.grad(lambda c, a: weighted(WEIGHT, function(c, a)), argnums=(0, 1))(c, a)

        return {
            "eager": lambda: gradients(first, A),
            "jit": lambda: jax.jit(gradients)(first, A),
            "vmap over parameters": lambda: jax.jit(jax.vmap(gradients, (0, None)))(c, A),
            "vmap over both": lambda: jax.jit(jax.vmap(gradients))(c, STACK),
            "vmap over matrices": lambda: jax.jit(jax.vmap(gradients, (None, 0)))(first, STACK),
        }[transform]()

    assert_within(transformed(cubic), transformed(cubic_by_products), 200)


def test_parameters_with_leading_axes_are_those_of_vmap():
    stack = STACK.reshape(2, 4, 4, 3)

    @jax.jit
    def gradients(t):
        def together(t):
            return jnp.sum(resolvent(t, stack) ** 3)

        def one_by_one(t):
            return jnp.sum(jax.vmap(jax.vmap(lambda a: resolvent(t, a)))(stack) ** 3)

        return jax.grad(together)(t), jax.grad(one_by_one)(t)

    assert_within(*gradients(T), 4)
    mapped = jax.jit(lambda t: jax.vmap(jax.vmap(lambda a: resolvent(t, a)))(stack))
    assert_same_bits(jax.jit(lambda t: resolvent(t, stack))(T), mapped(T))


def test_parameter_that_depends_on_the_matrix():
    def ours(a):  # U (|A|_F^2 s) V^H
        energy = jaxsvd.spectral_sum(jnp.square, a)
        return weighted(WEIGHT, jaxsvd.spectral_map(lambda s: energy * s, a))

    def closed_form(a):
        return weighted(WEIGHT, jnp.sum(a * a) * a)

    product = jax.jit(PRODUCTS["forward over reverse"], static_argnums=0)
    assert_within(product(ours, A, E), product(closed_form, A, E), 200)


@pytest.mark.x32
def test_integer_parameter_is_a_constant():
    power, t = jnp.arange(1, 4), jnp.float32(0.5)

    def loss(t, power, a):
        return jaxsvd.spectral_sum(lambda s: t * s ** power[1].astype(s.dtype), a)

    a = A.astype(np.float32)
    value, slope = jax.jit(jax.value_and_grad(loss))(t, power, a)
    assert_within((value, slope), (0.5 * jnp.sum(a * a), jnp.sum(a * a)), 20)
