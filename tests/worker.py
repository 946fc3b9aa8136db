"""One process of several: what test_processes starts.

python -m tests.worker PORT COUNT NUMBER check|endless
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsvd
from tests.test_sharded import (
    METHODS,
    check_program,
    is_placed,
    matrix,
    value_and_gradient_of_energy,
    values,
)

P = PartitionSpec
# Seconds until a silent process counts as dead, where one is going to be killed.
HEARTBEAT = 15


def spread(a: np.ndarray, mesh, spec) -> jax.Array:
    """The matrix over all processes; each makes the blocks of its own devices and no more."""
    there = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(a.shape, there, lambda index: a[index])


def check(shape, axes, spec, kind, method) -> None:
    mesh = jax.make_mesh(shape, axes, axis_types=(kind,) * len(axes))
    assert {device.process_index for device in mesh.devices.flat} == {0, 1}
    a = spread(matrix(), mesh, spec)
    k = len(values()[:4])
    with jax.set_mesh(mesh):
        program = jax.jit(value_and_gradient_of_energy(METHODS[method])).lower(a).compile()
        check_program(program.as_text())
        (_, result), gradient = program(a)
        residuals = np.asarray(jax.jit(jaxsvd.residuals)(a, result))
    eps = float(jnp.finfo(np.float32).eps)
    np.testing.assert_allclose(result.S, values()[:k], rtol=0, atol=10 * eps)
    assert np.max(residuals) <= 1e-5
    assert is_placed(result.U, mesh, spec[0], None)
    assert is_placed(result.Vh, mesh, None, spec[1])
    assert is_placed(gradient, mesh, *spec)
    U, S, Vh = np.linalg.svd(np.asarray(matrix(), np.float64), full_matrices=False)
    expected = 2 * (U[:, :k] * S[:k]) @ Vh[:k]
    for shard in gradient.addressable_shards:
        np.testing.assert_allclose(shard.data, expected[shard.index], rtol=0, atol=1e-4)


def check_eager() -> None:
    """The call as it is written, outside jit, with a key that each process makes for itself."""
    mesh = jax.make_mesh((8,), ("i",))
    result = METHODS["randomized"](spread(matrix(), mesh, P("i", None)))
    np.testing.assert_allclose(result.S, values()[:4], rtol=0, atol=1e-6)
    assert is_placed(result.U, mesh, "i", None)


def endless() -> None:
    mesh = jax.make_mesh((8,), ("i",))
    a = spread(matrix(), mesh, P("i", None))
    with jax.set_mesh(mesh):
        step = jax.jit(lambda a: METHODS["randomized"](a).S)
        while True:
            step(a).block_until_ready()
            print("running", flush=True)


def main(port: str, count: str, number: str, what: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    seconds = HEARTBEAT if what == "endless" else 600
    jax.distributed.initialize(
        f"127.0.0.1:{port}",
        num_processes=int(count),
        process_id=int(number),
        initialization_timeout=60,
        heartbeat_timeout_seconds=seconds,
        shutdown_timeout_seconds=seconds,  # leaving waits for the others, at most so long
    )
    assert jax.process_count() == int(count)
    if what == "endless":
        endless()
    check((8,), ("i",), P("i", None), AxisType.Explicit, "krylov")
    check((2, 4), ("i", "j"), P("i", "j"), AxisType.Auto, "krylov")
    check((4, 2), ("i", "j"), P("i", "j"), AxisType.Explicit, "randomized")
    check_eager()
    print("all checked", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
