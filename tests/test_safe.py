"""`jaxsvd.safe`: functions of others, after public reports of NaN, against NumPy and SciPy.

The truth is a loss written in NumPy that never sees a singular vector where a closed form exists,
differentiated by finite differences.
"""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
import pytest
import scipy.linalg
from helpers import adjoint, assert_within, gaussian, hermitian, orthonormal, with_values
from jax import lax

import jaxsvd
from jaxsvd import safe
from jaxsvd._differences import extrapolated_difference

svd = functools.partial(jnp.linalg.svd, full_matrices=False)

W = gaussian((4, 4), seed=5)
W33, W43, W34 = W[:3, :3], W[:, :3], W[:3]
b = gaussian((4,), seed=6)
TIED = with_values([2, 2, 1], 3, 3, seed=1)
TALL = with_values([2, 2, 1], 4, 3, seed=2)
WIDE = TALL.T.copy()
SPD = hermitian([2, 2, 1.0], seed=3)
COMPLEX = hermitian([2, 2, 1.0], np.complex128, seed=4)


@pytest.fixture(autouse=True)
def promotions_of_others():
    """Code of others leaves promotion to JAX."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Case(NamedTuple):
    """A loss in JAX, the same in NumPy, where to differentiate, and the rules it should get."""

    loss: object
    truth: object
    at: np.ndarray
    rules: tuple[str, ...]


def gradient(truth, A):
    """The gradient in JAX's convention by finite differences of a NumPy loss."""
    g = np.zeros_like(A)
    for i in np.ndindex(A.shape):
        for unit in (1, 1j) if np.iscomplexobj(A) else (1,):
            E = np.zeros_like(A)
            E[i] = unit
            slope, _ = extrapolated_difference(lambda t, E=E: np.real(truth(A + t * E)), 1e-2)
            g[i] += slope / unit if unit == 1 else -1j * slope
    return g


def check(case: Case, tolerance: float = 2e-7):
    """Values bit for bit, eager and compiled; the gradient; the report."""
    A = jnp.asarray(case.at)
    value, report = safe(case.loss, report=True)(A)
    assert value == case.loss(A)
    assert report.rules() == case.rules, str(report)
    assert jax.jit(safe(case.loss))(A) == jax.jit(case.loss)(A)
    g = jax.jit(jax.grad(safe(case.loss)))(A)
    want = gradient(case.truth, case.at)
    np.testing.assert_allclose(g, want, rtol=0, atol=tolerance * max(1, np.abs(want).max()))


def sym(A):
    return (A + adjoint(A)) / 2


def of_eigh(f, A):
    w, Q = jnp.linalg.eigh(A)
    return (Q * f(w)) @ Q.conj().T


# ---------------------------------------------------------------- twenty reports of wrong gradients


def issue_8732(A):  # the norm of U S Vh at repeated singular values
    U, s, Vh = svd(A)
    return jnp.linalg.norm((U * s) @ Vh)


def issue_2311(A):  # a tensor network keeps the leading part of a matrix with repeated zeros
    U, s, Vh = svd(A)
    root = jnp.sqrt(s[:1])
    return jnp.sum(W33 * ((U[:, :1] * root) @ (root[:, None] * Vh[:1])))


def rank_one(A):
    U, s, Vh = np.linalg.svd(A)
    return np.sum(W33 * (s[0] * np.outer(U[:, 0], Vh[0])))


def issue_669(A):  # a function of a complex Hermitian matrix, jitted
    return jnp.real(jnp.sum(W33 * jax.jit(lambda A: of_eigh(jnp.exp, A))(A)))


def issue_4646(A):  # the vector that is not degenerate among those that are
    v = jnp.linalg.eigh(A)[1][:, 2]
    return v[0] * v[1] + v[0] ** 2


def top_vector(A):
    v = np.linalg.eigh(sym(A))[1][:, 2]
    return v[0] * v[1] + v[0] ** 2


def issue_2011(A):  # the nuclear norm, full_matrices by default
    return jnp.linalg.norm(A, ord="nuc")


def issue_508(A):  # full matrices, and the projector on the left null space
    U, s, Vh = jnp.linalg.svd(A, full_matrices=True)
    rest = U[:, 3:]
    return jnp.sum(W43 * ((U[:, :3] * s) @ Vh)) + jnp.sum(W * (rest @ rest.T))


def full_matrices(A):
    return np.sum(W43 * A) + np.sum(W * (np.eye(4) - A @ np.linalg.inv(A.T @ A) @ A.T))


def issue_10527(x):  # a matrix of rank one, made of a vector
    w, U = jnp.linalg.eigh(x[:, None] * x[None, :])
    return b[:3] @ (U @ (jnp.exp(-w) * (U.T @ b[:3])))


def issue_10877(A):  # a sum over |v|, at distinct values
    return jnp.sum(jnp.abs(jnp.linalg.eigh(A)[1]))


def issue_2744(A):  # least squares
    return jnp.sum(jnp.linalg.lstsq(A, b)[0] ** 2)


def issue_2794(A):  # pseudoinverse written by hand, at deficient rank, along the same rank
    U, s, Vh = svd(A @ A.T)
    s = jnp.where(s > 1e-10 * s[0], 1 / jnp.where(s > 1e-10 * s[0], s, 1), 0)
    return jnp.sum(W * ((Vh.T * s) @ U.T))


def tf_17476(A):  # the rotation next to a matrix all of whose singular values are one
    U, _, Vh = svd(A)
    return jnp.sum(W33 * (U @ Vh))


def polar_factor(A):
    return np.sum(W33 * scipy.linalg.polar(A)[0])


def kabsch(A):  # the same with the sign of the determinant
    U, _, Vh = svd(A)
    d = jnp.sign(jnp.linalg.det(U @ Vh))
    return jnp.sum(W33 * ((U * jnp.array([1.0, 1.0, 1.0]).at[2].set(d)) @ Vh))


def geomstats_176(A):  # logarithm of a multiple of the identity
    return jnp.sum(W33 * of_eigh(jnp.log, A))


def felupe_67(F):  # energy of principal stretches, undeformed
    stretches = jnp.sqrt(jnp.linalg.eigvalsh(F.T @ F))
    return jnp.sum(stretches**3 / 3 - jnp.log(stretches))


def stretch_energy(F):
    s = np.linalg.svd(F, compute_uv=False)
    return np.sum(s**3 / 3) - np.log(abs(np.linalg.det(F)))


def whitened(A):  # ZCA
    w, Q = jnp.linalg.eigh(A)
    return jnp.sum(W33 * (Q @ jnp.diag(1 / jnp.sqrt(w)) @ Q.T))


def frechet_distance(A):  # tr (A^(1/2) B A^(1/2))^(1/2), both the identity
    root = of_eigh(jnp.sqrt, A)
    return jnp.sum(jnp.sqrt(jnp.linalg.eigvalsh(root @ jnp.diag(jnp.array([1.0, 1, 2])) @ root)))


def entropy(A):  # von Neumann, of the maximally mixed state
    w = jnp.linalg.eigvalsh(A)
    p = w / jnp.sum(w)
    return -jnp.sum(p * jnp.log(p))


def von_neumann(A):
    P = sym(A) / np.trace(A)
    return -np.trace(P @ scipy.linalg.logm(P)).real


def soft_threshold(A):  # the proximal step of the nuclear norm
    U, s, Vh = svd(A)
    return jnp.sum(W33 * (U @ jnp.diag(jax.nn.relu(s - 0.5)) @ Vh))


def shrink(A):
    return np.sum(W33 * (A - 0.5 * scipy.linalg.polar(A)[0]))  # all values above 0.5


def marginal_likelihood(A):  # a Gaussian process in its eigenbasis
    w, Q = jnp.linalg.eigh(A)
    return jnp.sum((Q.T @ b[:3]) ** 2 / (w + 0.1)) + jnp.sum(jnp.log(w + 0.1))


def gaussian_process(A):
    K = sym(A) + 0.1 * np.eye(3)
    return b[:3] @ np.linalg.solve(K, b[:3]) + np.linalg.slogdet(K)[1]


def heat_kernel(A):  # a complex graph Laplacian
    w, Q = jnp.linalg.eigh(A)
    return jnp.sum(jnp.exp(-w) * jnp.abs(Q.conj().T @ b[:3].astype(complex)) ** 2)


def ridge(A):  # the filter factors of Tikhonov, as einsum
    U, s, Vh = svd(A)
    return jnp.sum(W43 * jnp.einsum("ji,j,kj->ik", Vh, s / (s**2 + 1), U).T)


def descending(A):  # the habit of NumPy: reverse, then cut
    w, Q = jnp.linalg.eigh(A)
    w, Q = w[::-1], Q[:, ::-1]
    return jnp.sum(W33 * ((Q[:, :2] * w[:2] ** 2) @ Q[:, :2].T))


def two_of_three(A):
    w, Q = np.linalg.eigh(sym(A))
    return np.sum(W33 * ((Q[:, 1:] * w[1:] ** 2) @ Q[:, 1:].T))


def sorted_by_hand(A):  # and argsort, largest magnitude first
    w, Q = jnp.linalg.eigh(A)
    order = jnp.argsort(jnp.abs(w))[::-1]
    w, Q = w[order], Q[:, order]
    return jnp.sum(W33 * ((Q * w**3) @ Q.T))


def hermitian_svd(A):
    U, s, Vh = jnp.linalg.svd(A, hermitian=True)
    return jnp.sum(W33 * ((U * s**3) @ Vh))


def iterated(A):  # inside a scan and a checkpoint
    def step(A, _):
        U, s, Vh = svd(A)
        return (U * jnp.tanh(s)) @ Vh, jnp.sum(s**2)

    A, energies = lax.scan(jax.checkpoint(step), A, None, length=2)
    return jnp.sum(W33 * A) + jnp.sum(energies)


def iterate(A):
    total = 0
    for _ in range(2):
        total += np.sum(A**2)
        polar, H = scipy.linalg.polar(A)
        A = polar @ scipy.linalg.tanhm(H)
    return np.sum(W33 * A) + total


def closed(f):
    return lambda A: np.sum(W33 * f(sym(A))).real


MAP, VALUES = "spectral_map", "values"
EIGH, SUM = "hermitian_map", "hermitian_sum"
SNIPPETS = {
    "8732": Case(issue_8732, np.linalg.norm, np.diag([1.0, 1, 2, 3]), (MAP,)),
    "2311": Case(issue_2311, rank_one, np.ones((3, 3)), ("core_svd",)),
    "669": Case(issue_669, closed(scipy.linalg.expm), COMPLEX, (EIGH,)),
    "4646": Case(issue_4646, top_vector, hermitian([1, 1, 4.0]), ("masked",)),
    "2011": Case(issue_2011, lambda A: np.linalg.norm(A, "nuc"), TALL, ("spectral_sum",)),
    "508": Case(issue_508, full_matrices, TALL, (MAP, "masked")),
    "10527": Case(
        issue_10527,
        lambda x: b[:3] @ scipy.linalg.expm(-np.outer(x, x)) @ b[:3],
        np.array([1.0, 2, 3]) / 3,
        (EIGH,),
    ),
    "10877": Case(
        issue_10877,
        lambda A: np.sum(np.abs(np.linalg.eigh(sym(A))[1])),
        hermitian([1, 2, 4.0]),
        ("masked",),
    ),
    "2744": Case(issue_2744, lambda A: np.sum(np.linalg.lstsq(A, b)[0] ** 2), TALL, (VALUES, MAP)),
    "2794": Case(issue_2794, lambda A: np.sum(W * np.linalg.pinv(A @ A.T).T), TALL, (VALUES, MAP)),
    "17476": Case(tf_17476, polar_factor, orthonormal(3, 3), (MAP,)),
    "kabsch": Case(kabsch, polar_factor, orthonormal(3, 3), (MAP, "masked")),
    "176": Case(geomstats_176, closed(scipy.linalg.logm), 2 * np.eye(3), (EIGH,)),
    "67": Case(felupe_67, stretch_energy, np.eye(3), (SUM,)),
    "whitening": Case(
        whitened, closed(lambda A: np.linalg.inv(scipy.linalg.sqrtm(A))), SPD, (EIGH,)
    ),
    "bures": Case(
        frechet_distance,
        lambda A: np.trace(scipy.linalg.sqrtm(sym(A) @ np.diag([1.0, 1, 2]))).real,
        np.eye(3),
        (EIGH, SUM),
    ),
    "entropy": Case(entropy, von_neumann, np.eye(3) / 3, (SUM, SUM)),
    "shrink": Case(soft_threshold, shrink, TIED, (MAP,)),
    "likelihood": Case(marginal_likelihood, gaussian_process, SPD, (EIGH, SUM)),
    "heat": Case(
        heat_kernel, lambda A: (b[:3] @ scipy.linalg.expm(-sym(A)) @ b[:3]).real, COMPLEX, (EIGH,)
    ),
    "ridge": Case(
        ridge, lambda A: np.sum(W43 * (A @ np.linalg.inv(A.T @ A + np.eye(3)))), TALL, (MAP,)
    ),
    "descending": Case(descending, two_of_three, SPD, ("core_eigh",)),
    "argsort": Case(sorted_by_hand, closed(lambda A: A @ A @ A), SPD, (EIGH,)),
    "hermitian": Case(hermitian_svd, closed(lambda A: A @ A @ A), hermitian([2, -2, 1.0]), (EIGH,)),
    "scan": Case(iterated, iterate, TIED, (MAP, "spectral_sum")),
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_reports_of_others(name):
    check(SNIPPETS[name])


# ----------------------------------------------------------------- functions of installed libraries


def mean_rotation(q):
    from jax.scipy.spatial.transform import Rotation

    return jnp.sum(W33 * Rotation.from_quat(q).mean().as_matrix())


def numpy_mean_rotation(q):
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    x, y, z, w = np.linalg.eigh(q.T @ q)[1][:, -1]
    matrix = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.sum(W33 * np.array(matrix))


def linear_solve(A):
    import lineax

    found = lineax.linear_solve(lineax.MatrixLinearOperator(A), b[:3], solver=lineax.SVD())
    return jnp.sum(found.value * b[:3])


def galore(G):
    """The update of an optimizer that projects gradients on their leading singular vectors."""
    import optax

    transform = optax.contrib.scale_by_galore(
        rank=2, update_proj_gap=1, scale=1.0, base_optimizer=optax.identity()
    )
    weights = {"w": jnp.zeros((4, 3))}
    update, _ = transform.update({"w": G}, transform.init(weights), weights)
    return jnp.sum(W43 * update["w"])


def truncated(G):
    U, s, Vh = np.linalg.svd(G, full_matrices=False)
    return np.sum(W43 * ((U[:, :2] * s[:2]) @ Vh[:2]))


GRID = np.array([-1.5, -0.5, 0.5, 1.5])
LIBRARIES = {
    "jax.scipy.linalg.polar": Case(
        lambda A: sum(jnp.sum(x * x * x) for x in jsl.polar(A, method="svd")),
        lambda A: sum(np.sum(x**3) for x in scipy.linalg.polar(A)),
        TALL,
        (MAP, "core_svd"),
    ),
    "jnp.linalg.norm": Case(
        lambda A: jnp.sum(jnp.linalg.norm(A, "nuc", axis=(-2, -1)) ** 2),
        lambda A: np.sum(np.linalg.norm(A, "nuc", axis=(-2, -1)) ** 2),
        np.stack([TIED, np.eye(3)]),
        ("spectral_sum",),
    ),
    "jnp.linalg.pinv": Case(
        lambda A: jnp.sum(jnp.linalg.pinv(A) ** 3),
        lambda A: np.sum(np.linalg.pinv(A) ** 3),
        WIDE,
        ("left",),
    ),
    "jnp.linalg.lstsq": Case(
        lambda A: jnp.sum(jnp.linalg.lstsq(A, b[:3])[0] ** 3),
        lambda A: np.sum(np.linalg.lstsq(A, b[:3])[0] ** 3),
        WIDE,
        (VALUES, MAP),
    ),
    "jnp.polyfit": Case(
        lambda x: jnp.sum(jnp.polyfit(x, b, 1) ** 2),
        lambda x: np.sum(np.polyfit(x, b, 1) ** 2),
        GRID / np.sqrt(np.mean(GRID**2)),  # both columns of the design have the same length
        (VALUES, MAP),
    ),
    "Rotation.mean": Case(
        mean_rotation, numpy_mean_rotation, np.eye(4)[[0, 1, 3]] + 0.05, ("masked",)
    ),
    "optax.contrib.scale_by_galore": Case(galore, truncated, TALL, ("masked",)),
    "lineax.linear_solve": Case(
        linear_solve,
        lambda A: b[:3] @ np.linalg.solve(A, b[:3]),
        TIED,
        ("left", "left", "constant"),
    ),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_functions_of_libraries(name):
    if name.startswith("lineax"):
        pytest.importorskip("lineax")
    check(LIBRARIES[name], 2e-6 if name.startswith("optax") else 2e-7)  # it works in float32


# --------------------------------------------------------------------------- transforms and nesting


def reconstruct(A, power=2):
    U, s, Vh = svd(A)
    return (U * s[..., None, :] ** power) @ Vh


def test_batches_and_vmap_give_one_answer():
    stack = jnp.asarray(np.stack([TIED, np.eye(3), 3 * np.eye(3)]))
    safely = safe(reconstruct)
    want = jax.vmap(lambda A: jaxsvd.spectral_map(jnp.square, A))(stack)
    one = jax.vjp(safely, stack)
    two = jax.vjp(jax.vmap(safely), stack)
    three = jax.vjp(safe(jax.vmap(reconstruct, in_axes=2, out_axes=2)), stack.transpose(1, 2, 0))
    ct = jnp.asarray(gaussian(stack.shape, seed=8))
    g = jax.vjp(lambda A: jax.vmap(lambda A: jaxsvd.spectral_map(jnp.square, A))(A), stack)[1](ct)
    assert_within(one[0], want, 50)
    for found in (one, two):
        assert_within(found[1](ct), g, 100)
    (last,) = three[1](ct.transpose(1, 2, 0))
    assert_within(last.transpose(2, 0, 1), g[0], 100)


def test_inside_shard_map():
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4])
    spec = jax.sharding.PartitionSpec("x")
    local = jax.shard_map(reconstruct, mesh=mesh, in_specs=spec, out_specs=spec)
    sharding = jax.sharding.NamedSharding(mesh, spec)
    stack = jax.device_put(np.stack([SPD, np.eye(3), 2 * np.eye(3), TIED @ TIED.T]), sharding)
    found, report = safe(local, report=True)(stack)
    np.testing.assert_array_equal(found, local(stack))
    assert report.rules() == ("spectral_map",)
    with jax.set_mesh(mesh):
        g = jax.jit(jax.grad(lambda A: jnp.sum(jnp.sin(safe(local)(A)))))(stack)
    # Symmetric and positive semidefinite: U S^2 Vh is the square.
    want = jax.grad(lambda A: jnp.sum(jnp.sin(A @ A)))(jnp.asarray(np.asarray(stack)))
    np.testing.assert_allclose(g + g.mT, want + want.mT, atol=1e-12)


@jax.custom_jvp
def nuclear(A):
    return jnp.sum(svd(A)[1])


@nuclear.defjvp
def _(primals, tangents):
    U, s, Vh = svd(primals[0])
    return jnp.sum(s), jnp.sum((U @ Vh) * tangents[0])


def branches(A):
    A = lax.cond(jnp.sum(A) < 100, lambda A: reconstruct(A, 3), lambda A: A, A)
    A = lax.fori_loop(0, 2, lambda _, A: reconstruct(A, 1) / 2, A)
    return jnp.sum(W33 * A)


@pytest.mark.parametrize(
    "order",
    [jax.hessian, lambda f: jax.jacrev(jax.jacrev(f)), lambda f: jax.jacrev(jax.jacfwd(f))],
    ids=["forward-reverse", "reverse-reverse", "reverse-forward"],
)
@pytest.mark.parametrize(
    ("loss", "exact"),
    [
        (lambda A: jnp.sum(jnp.sin(reconstruct(A, 1))), lambda A: jnp.sum(jnp.sin(A))),
        (
            lambda A: jnp.sum(W33 * of_eigh(lambda w: 1 / w, A)),
            lambda A: jnp.sum(W33 * jnp.linalg.inv((A + A.T) / 2)),
        ),
        (lambda A: jnp.sum(jnp.linalg.svdvals(A) ** 4), lambda A: jnp.sum((A.T @ A) ** 2)),
        (
            lambda A: jnp.sum(W33 * (lambda U, s, Vh: (U * s**2) @ U.T)(*svd(A))),
            lambda A: jnp.sum(W33 * (A @ A.T)),
        ),
        (nuclear, lambda A: jaxsvd.spectral_sum(lambda s: s, A)),
        # Two derivatives beside each other, through a sum that is divided by.
        (
            lambda A: jnp.sum(W33 * of_eigh(lambda w: w / jnp.sum(w), A)),
            lambda A: jnp.sum(W33 * (A + A.T) / 2) / jnp.trace(A),
        ),
    ],
    ids=["map", "inverse", "sum", "left", "custom_jvp", "normalised"],
)
def test_second_derivatives_at_ties(loss, exact, order):
    A = jnp.asarray(SPD)
    assert_within(jax.jit(order(safe(loss)))(A), jax.jit(order(exact))(A), 1e4)


def test_forward_mode_and_loops():
    E = jnp.asarray(gaussian((3, 3), seed=9))

    def truth(t):
        A = TIED + t * np.asarray(E)
        return np.sum(W33 * (A @ A.T @ A)) / 4

    value, tangent = jax.jit(lambda A: jax.jvp(safe(branches), (A,), (E,)))(jnp.asarray(TIED))
    assert value == jax.jit(branches)(jnp.asarray(TIED))
    np.testing.assert_allclose(tangent, extrapolated_difference(truth, 1e-2)[0], rtol=1e-8)
    rules = safe(branches, report=True)(jnp.asarray(TIED))[1].rules()
    assert set(rules) == {"spectral_map"}


def test_parameters_inside_are_differentiated():
    """A threshold that is an argument, and one for each matrix of a batch."""

    def loss(A, cut):
        U, s, Vh = svd(A)
        return jnp.sum(W33 * ((U * jnp.maximum(s - cut[..., None], 0)[..., None, :]) @ Vh))

    stack = jnp.asarray(np.stack([TIED, np.eye(3)]))
    cut = jnp.array([0.5, 0.25])
    g = jax.jit(jax.grad(safe(loss), 1))(stack, cut)
    want = [-np.sum(W33 * scipy.linalg.polar(A)[0]) for A in np.asarray(stack)]
    np.testing.assert_allclose(g, want, rtol=1e-12)


def test_scale_of_single_precision():
    """JAX's issue 40185: a Hessian at a scale whose square is out of range."""
    A = jnp.array([[4, 1, 0], [1, 3, 1], [0, 1, 2]], jnp.float32)

    def nuc(A):
        return jnp.sum(jnp.linalg.svd(A, compute_uv=False))

    want = np.asarray(jax.hessian(safe(nuc))(A))
    found = np.asarray(jax.hessian(safe(nuc))(A * np.float32(2.0**-66)))
    np.testing.assert_allclose(found * np.float32(2.0**-66), want, rtol=1e-5, atol=1e-6)
    assert not np.isfinite(jax.hessian(nuc)(A * np.float32(2.0**-66))).all()


@pytest.mark.x32
def test_single_precision():
    A = jnp.asarray(TIED.astype(np.float32))
    g = jax.grad(safe(lambda A: jnp.sum(reconstruct(A, 1) ** 2)))(A)
    assert g.dtype == jnp.float32
    np.testing.assert_allclose(g, 2 * np.asarray(A), atol=1e-5)


def mean_of_polar(A):
    return sum(jnp.mean(x) for x in jsl.polar(A, method="svd"))


def optimized(f, A):
    """The kinds of operation of the compiled program, in order."""
    text = jax.jit(f).lower(A).compile().as_text()
    return re.findall(r"= \S+ ([a-z-]+)\(", text)


def test_only_decompositions_change():
    """What holds none is the function itself; elsewhere each equation stays, in number too."""

    def plain(A):
        return jnp.sin(A) @ A

    A = jnp.asarray(TIED)
    assert safe(plain, report=True)(A)[1].replacements == ()
    assert str(jax.make_jaxpr(safe(plain))(A)) == str(jax.make_jaxpr(plain)(A))
    for loss in (issue_8732, mean_of_polar):
        one, two = (optimized(f, A) for f in (loss, safe(loss)))
        assert one == two


def test_traced_once_for_each_shape():
    calls = []

    def loss(A, power, name="x"):
        calls.append(name)
        return jnp.sum(reconstruct(A, power))

    safely = safe(loss)
    for _ in range(3):
        safely(jnp.asarray(TIED), 2)
        safely(jnp.asarray(TIED), power=3, name="y")
    assert len(calls) == 2


def test_closed_over_tracers():
    def loss(t):
        return jnp.sum(safe(lambda A: reconstruct(A * t, 1))(jnp.asarray(TIED)) * W33)

    np.testing.assert_allclose(jax.grad(loss)(2.0), np.sum(W33 * TIED), rtol=1e-12)


def test_results_keep_their_structure():
    def several(A, what):
        s = svd(A)[1]
        return {"values": s, "name": what, "none": None, "count": 3}

    found = safe(several)(jnp.asarray(TIED), "it")
    assert found["name"] == "it"
    assert found["none"] is None
    assert found["count"] == 3
    np.testing.assert_array_equal(found["values"], several(jnp.asarray(TIED), "it")["values"])


def straight_through(A):
    @jax.custom_jvp
    def rounded(s):
        return jnp.round(s)

    rounded.defjvp(lambda primals, tangents: (rounded(*primals), tangents[0]))
    U, s, Vh = svd(A)
    return jnp.sum(W33 * ((U * rounded(s)) @ Vh))


def two_orders(A):
    w, Q = jnp.linalg.eigh(A)
    one, two = jnp.argsort(-w), jnp.argsort(jnp.sin(5 * w))
    return jnp.sum(W33 * ((Q[:, one] * w[two]) @ Q[:, one].T)) + jnp.sum(
        W33 * ((Q[:, two] * w[two])[:, :2] @ Q[:, two][:, :2].T)
    )


def across_a_batch(A):
    U, s, Vh = svd(jnp.stack([A, A + A.T]))
    return jnp.sum(W33 * jnp.einsum("ik,kj->ij", U[0] * s[0], Vh[0])) + jnp.sum(
        jnp.tensordot(U * s[:, None], Vh, ((2,), (1,)))[0, :, 1] ** 2
    )


def by_index(A):
    U, s, Vh = svd(A)
    return jnp.sum(W33 * ((U * (s * jnp.arange(3.0))) @ Vh)) + jnp.sum(s * jnp.arange(3.0) ** 2)


def two_spectra(A):
    s = jnp.linalg.svdvals(A)
    return jnp.sum(jnp.sin(s[:, None] * s)) + jnp.sum((s[:, None] + s) * (s[:, None] * s))


def complex_roots(A):
    w, Q = jnp.linalg.eigh(A - 1.5 * jnp.eye(3))
    root = (Q * jnp.sqrt(w.astype(complex))) @ Q.T
    return jnp.sum(W33 * (root.real + 2 * root.imag))


@pytest.mark.parametrize(
    "loss", [straight_through, across_a_batch, two_orders, by_index, two_spectra, complex_roots]
)
def test_what_only_looks_like_a_pattern(loss):
    """At distinct values, where JAX is right, the gradient must be JAX's."""
    A = jnp.asarray(hermitian([1.2, 2, 3.7]) + 0.05 * np.triu(gaussian((3, 3))))
    np.testing.assert_allclose(jax.grad(safe(loss))(A), jax.grad(loss)(A), rtol=1e-9, atol=1e-11)


# ------------------------------------------------------------------------------- what is left alone


def left(f, *args):
    report = safe(f, report=True)(*args)[1]
    return {row.primitive: row.note for row in report.replacements if row.rule == "left"}


def test_untraceable_functions_run_as_they_are():
    def decides(A):
        return (A if A[0, 0] > 0 else -A) + np.asarray(jnp.linalg.svdvals(A))[0]

    A = jnp.asarray(SPD)
    np.testing.assert_array_equal(safe(decides)(A), decides(A))
    assert "cannot be traced" in left(decides, A)["decides"]


def test_callbacks_and_own_derivatives_are_named():
    @jax.custom_vjp
    def own(A):
        return jnp.sum(svd(A)[1])

    own.defvjp(lambda A: (own(A), A), lambda A, g: (g * jnp.ones_like(A),))

    def mixed(A):
        shape = jax.ShapeDtypeStruct((), A.dtype)
        outside = jax.pure_callback(lambda A: np.linalg.svd(A)[1][0], shape, A)
        return own(A) + lax.stop_gradient(outside) + jnp.sum(jnp.linalg.pinv(A))

    A = jnp.asarray(SPD)
    assert safe(mixed)(A) == mixed(A)
    names = left(mixed, A)
    assert "outside JAX" in names["pure_callback"]
    assert "of its own" in names["_pinv"]
    assert sum("of its own" in note for note in names.values()) == 2
    np.testing.assert_array_equal(jax.grad(safe(own))(A), np.ones((3, 3)))


def test_side_effects_stay():
    said = []

    def speaks(A):
        jax.debug.callback(lambda s: said.append(float(s)), jnp.sum(A))
        return jnp.sum(reconstruct(A))

    safe(speaks)(jnp.asarray(TIED))
    jax.effects_barrier()
    assert said == [float(jnp.sum(jnp.asarray(TIED)))]


def test_the_report_says_where():
    _, report = safe(issue_8732, report=True)(jnp.asarray(TIED))
    (row,) = report.replacements
    assert row.primitive == "svd"
    assert row.shape == (3, 3)
    assert "test_safe.py" in row.at
    assert "(issue_8732)" in row.used_at
    assert row.inside == ("jit svd",)
    assert "spectral_map" in str(report)
    _, report = jax.jit(safe(issue_8732, report=True))(jnp.asarray(TIED))
    assert report.rules() == ("spectral_map",)


def test_bad_input():
    with pytest.raises(TypeError, match="safe: `fn` must be a function"):
        safe(3)
    with pytest.raises(TypeError, match="safe: `report` must be"):
        safe(jnp.sum, report="yes")
