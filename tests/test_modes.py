"""The public functions under every mode of JAX that a training run may switch on.

The value of a loss and its gradient are computed plainly once; under each mode they must come out
the same. The matrix is not special, so no mode that looks for NaN has a reason to stop.
"""

import functools
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxsvd
from tests.helpers import assert_same_bits, assert_within, double, eps, gaussian, with_values

pytestmark = pytest.mark.x32

KEY = jax.random.key(0)
A = with_values([3, 2, 1.5, 1, 0.5], 7, 5, np.float32)
SYMMETRIC = (A[:5] + A[:5].T) / 2


def of_vectors(U, S):
    return jnp.sum(U[0, :2] ** 3) + jnp.sum(S)


def of_svd(a):
    U, S, _ = jaxsvd.svd(a, full_matrices=False)
    return of_vectors(U, S)


def of_truncated(a):
    U, S, _ = jaxsvd.truncated_svd(a, 2, method="subspace")
    return of_vectors(U, S)


def of_randomized(a):
    U, S, _ = jaxsvd.randomized_svd(KEY, a, 2, oversampling=3)
    return of_vectors(U, S)


def of_core(a):
    U, C, _ = jaxsvd.core_svd(a, 2)
    return jnp.sum((U @ C)[0] ** 2)


def of_eigh(a):
    w, Q = jaxsvd.eigh((a[:5] + a[:5].T) / 2)
    return of_vectors(Q, w)


LOSSES = {
    "svd": of_svd,
    "svdvals": lambda a: jnp.sum(jaxsvd.svdvals(a) ** 3),
    "spectral_map": lambda a: jaxsvd.spectral_map(jnp.tanh, a)[0, 0],
    "spectral_sum": lambda a: jaxsvd.spectral_sum(jnp.log1p, a),
    "core_svd": of_core,
    "low_rank": lambda a: jaxsvd.low_rank(a, 2)[0, 0],
    "truncated_svd": of_truncated,
    "randomized_svd": of_randomized,
    "eigh": of_eigh,
    "hermitian_map": lambda a: jaxsvd.hermitian_map(jnp.exp, (a[:5] + a[:5].T) / 2)[0, 0],
    "pinv": lambda a: jaxsvd.linalg.pinv(a)[0, 0],
    "nuclear": jaxsvd.norms.nuclear,
}
FEW = ["svd", "spectral_map", "core_svd", "truncated_svd"]


@functools.cache
def program(name):
    return jax.jit(jax.value_and_grad(LOSSES[name]))


@functools.cache
def plain(name):
    return jax.device_get(program(name)(A))


def fresh(name):
    """Return the same program, traced anew."""
    loss = LOSSES[name]
    return jax.jit(jax.value_and_grad(lambda a: loss(a)))


# ----------------------------------------------------------------------- modes that look for faults


@pytest.mark.parametrize("name", LOSSES)
def test_debug_nans_and_infs_find_nothing(name):
    with jax.debug_nans(True), jax.debug_infs(True):
        found = fresh(name)(A)
    assert_within(found, plain(name), 4)


# Ties and zeros are where masks hide a division: none of them may show.
SPECIAL = {
    "identity": np.eye(7, 5, dtype=np.float32),
    "deficient": with_values([3, 3, 1, 0, 0], 7, 5, np.float32),
    "zero": np.zeros((7, 5), np.float32),
}
# 1/0 at the cut of the zero matrix, and log, 1/s at zero, are infinite as functions.
SMOOTH = [
    "svd",
    "svdvals",
    "spectral_map",
    "spectral_sum",
    "core_svd",
    "low_rank",
    "pinv",
    "nuclear",
]


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", SMOOTH)
def test_debug_nans_finds_nothing_at_ties_and_zeros(name, kind):
    with jax.debug_nans(True):
        value, gradient = fresh(name)(SPECIAL[kind])
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_debug_nans_sees_a_nan_that_comes_in():
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        fresh("svdvals")(np.full_like(A, np.nan))


@pytest.mark.parametrize("name", LOSSES)
def test_no_tracer_leaks(name):
    with jax.checking_leaks():
        jax.make_jaxpr(jax.vmap(jax.value_and_grad(lambda a: LOSSES[name](a))))(A[None])


@pytest.mark.parametrize("name", FEW)
def test_checkify_finds_nothing(name):
    checked = checkify.checkify(
        jax.value_and_grad(LOSSES[name]), errors=checkify.float_checks | checkify.index_checks
    )
    error, found = jax.jit(checked)(A)
    error.throw()
    assert_within(found, plain(name), 4)


def test_checkify_sees_a_nan_that_comes_in():
    checked = checkify.checkify(jaxsvd.svdvals, errors=checkify.nan_checks)
    error, _ = jax.jit(checked)(np.full_like(A, np.nan))
    assert error.get() is not None


# -------------------------------------------------------------------------------- ways to be called


@pytest.mark.parametrize("name", FEW)
def test_without_jit(name):
    with jax.disable_jit():
        found = jax.value_and_grad(LOSSES[name])(jnp.asarray(A))
    assert_within(found, plain(name), 100)


def test_eager_calls_within_other_transformations_of_the_same_size():
    """A program compiled for one mode is not used in another."""
    before = jaxsvd.svdvals(A)
    with jax.debug_nans(True):
        jaxsvd.svdvals(A)
    with jax.disable_jit():
        jaxsvd.svdvals(A)
    assert_same_bits(jaxsvd.svdvals(A), before)


@pytest.mark.parametrize("name", FEW)
def test_a_donated_matrix(name):
    step = jax.jit(lambda a: a - 0.1 * jax.grad(LOSSES[name])(a), donate_argnums=0)
    a = jnp.array(A)
    moved = step(a)
    assert a.is_deleted()
    assert_within(moved, double(A) - 0.1 * double(plain(name)[1]), 20)


@pytest.mark.parametrize("name", FEW)
def test_export_and_back(name):
    shape = jax.ShapeDtypeStruct(A.shape, A.dtype)
    exported = jax.export.export(jax.jit(jax.value_and_grad(LOSSES[name])), disabled_checks=QR)(
        shape
    )
    again = jax.export.deserialize(exported.serialize(vjp_order=1))
    assert_within(again.call(A), plain(name), 20)


EXPORTED = {
    "svd": jaxsvd.svd,
    "eigh": lambda a: jaxsvd.eigh(a[:5]),
    "core_svd": lambda a: jaxsvd.core_svd(a, 2),
    "core_eigh": lambda a: jaxsvd.core_eigh(a[:5], 2),
    "randomized_svd": lambda a: jaxsvd.randomized_svd(KEY, a, 2, return_info=True),
}


# JAX promises to keep `gesdd` of LAPACK, not yet `gesvd`, which small inner SVDs use on CPU.
QR = [jax.export.DisabledSafetyCheck.custom_call(f"lapack_{x}gesvd_ffi") for x in "sdcz"]


@pytest.mark.parametrize("name", EXPORTED)
def test_export_of_functions_that_return_named_tuples(name):
    exported = jax.export.export(jax.jit(EXPORTED[name]), disabled_checks=QR)(
        jax.ShapeDtypeStruct(A.shape, A.dtype)
    )
    found = jax.export.deserialize(exported.serialize()).call(A)
    expected = EXPORTED[name](A)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert_within(jax.tree.leaves(found)[:3], jax.tree.leaves(expected)[:3], 20)


def test_export_for_other_platforms():
    shape = jax.ShapeDtypeStruct(A.shape, A.dtype)
    exported = jax.export.export(jax.jit(of_svd), platforms=("cpu", "cuda", "tpu"))(shape)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    assert_within(exported.call(A), plain("svd")[0], 20)


RESULTS = {
    "svd": lambda: jaxsvd.svd(A),
    "eigh": lambda: jaxsvd.eigh(SYMMETRIC),
    "core_svd": lambda: jaxsvd.core_svd(A, 2),
    "core_eigh": lambda: jaxsvd.core_eigh(SYMMETRIC, 2),
    "truncated_svd": lambda: jaxsvd.truncated_svd(A, 2, method="subspace", return_info=True),
    "randomized_svd": lambda: jaxsvd.randomized_svd(KEY, A, 2, oversampling=3, return_info=True),
    "pca": lambda: jaxsvd.models.pca.fit(A, 2),
    "streaming": lambda: jaxsvd.streaming.update(jaxsvd.streaming.init(5, 2, dtype=np.float32), A),
    "track": lambda: jaxsvd.track.init(A, 2, extra=2),
    "operator": lambda: jaxsvd.operators.LowRank(A[:, :2], A[0, :2], A[:2]),
    "layer": lambda: jaxsvd.layers.LowRankLinear.from_dense(A, 2),
    "diagnose": lambda: jaxsvd.diagnose(lambda a: jnp.sum(a), A),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_pickled_result(name):
    result = RESULTS[name]()
    again = pickle.loads(pickle.dumps(result))
    assert type(again) is type(result)
    assert jax.tree.structure(again) == jax.tree.structure(result) or name == "diagnose"
    if name == "diagnose":
        assert str(again) == str(result)
    else:
        assert_same_bits(again, result)


def test_many_threads_at_once():
    """Eight threads trace, compile and run at once: all get what one alone gets."""
    names = [*FEW, "svdvals", "pinv", "svd", "spectral_map"]
    found, gate = [None] * len(names), threading.Barrier(len(names))

    def work(i):
        gate.wait()
        found[i] = [jaxsvd.svdvals(A), fresh(names[i])(A), jaxsvd.svdvals(SYMMETRIC)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, name in enumerate(names):
        assert_within(found[i][1], plain(name), 4)
        assert_same_bits((found[i][0], found[i][2]), (found[0][0], found[0][2]))


def test_modes_of_one_thread_do_not_reach_another():
    """x64, off or on, and the default precision are of the thread that has set them."""
    gate, found = threading.Barrier(2), {}

    def work(x64):
        with jax.enable_x64(x64):
            for _ in range(3):
                gate.wait()
                found[x64] = jaxsvd.svdvals(np.asarray(A, np.float64)).dtype

    threads = [threading.Thread(target=work, args=(x64,)) for x64 in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {False: np.float32, True: np.float64}


SPAWNING = """
import multiprocessing
import sys
import numpy as np
import jaxsvd

def values(a):
    return np.asarray(jaxsvd.svdvals(a))

if __name__ == "__main__":
    a = np.load(sys.argv[1])
    jaxsvd.svdvals(a)  # the backend of the parent is at work
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        np.save(sys.argv[1], pool.map(values, [a, 2 * a]))
"""


def run_script(folder, text, *arguments):
    """Run a script in a process with the defaults of JAX, on CPU, and return what it prints."""
    path = folder / "script.py"
    path.write_text(text)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    root = Path(__file__).resolve().parent.parent
    found = subprocess.run(
        [sys.executable, path, *arguments],
        env={**environment, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_spawned_processes(tmp_path):
    """Two workers of a pool, each with a backend of its own, as of a data loader."""
    np.save(tmp_path / "a.npy", A)
    run_script(tmp_path, SPAWNING, tmp_path / "a.npy")
    one, two = np.load(tmp_path / "a.npy")
    exact = np.linalg.svd(double(A), compute_uv=False)
    np.testing.assert_allclose(one, exact, rtol=20 * eps(np.float32))
    np.testing.assert_array_equal(two, 2 * one)


# ---------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_in_and_out(name, dtype):
    """Results and gradients have the dtype of the matrix, and the accuracy of float32 rounded."""
    a = jnp.asarray(A).astype(dtype)
    value, gradient = program(name)(a)
    assert value.dtype == gradient.dtype == a.dtype
    exact = program(name)(a.astype(jnp.float32))
    # Losses here add a few numbers of half precision.
    assert_within((value, gradient), exact, 8)


@pytest.mark.parametrize("name", LOSSES)
def test_the_other_x64(name):
    """With x64 switched the same float32 matrix gives the same numbers."""
    with jax.enable_x64(not jax.config.jax_enable_x64):
        found = jax.device_get(fresh(name)(A))
    assert_within(found, plain(name), 20)
    assert {x.dtype for x in found} == {np.dtype(np.float32)}


def test_double_precision_inside_a_program_without_x64():
    a = gaussian((6, 4))
    with jax.enable_x64(False):
        with jax.enable_x64(True):
            values = np.asarray(jaxsvd.svdvals(a))
        assert jaxsvd.svdvals(a).dtype == np.float32
    np.testing.assert_allclose(values, np.linalg.svd(a, compute_uv=False), rtol=1e-14)


SCRIPT = """
import jax
import numpy as np
import optax
before = dict(jax.config.values)
import jaxsvd
assert before == dict(jax.config.values)
assert not jax._src.xla_bridge.backends_are_initialized()
assert not jax.config.jax_enable_x64
a = np.random.default_rng(0).standard_normal((6, 4))
U, S, Vh = jaxsvd.svd(a, full_matrices=False)
assert U.dtype == S.dtype == np.float32
np.testing.assert_allclose(np.asarray(U * S @ Vh), a, atol=1e-5)
print("all right")
"""


def test_a_fresh_process_with_the_defaults_of_jax(tmp_path):
    """Without strict promotion and x64, and no configuration changes at import."""
    assert run_script(tmp_path, SCRIPT) == "all right\n"
