"""A batch of small matrices, a chunk of them at a time, with the batch as the minor axis.

Every instruction then works on many matrices, whose entries stay in the cache.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from .products import alike

# Bytes of columns rotated at once, and matrices at least and at most: 256 of 3 x 3, 128 of 8 x 8.
# 128 and 512 of 3 x 3 cost a tenth more, 64 of 8 x 8 6 % and 32 a third (calls of small loops); 96
# and 128 of 12 x 12 and of 16 x 16 a tenth to half (cache), 2048 of 3 x 3 five times (XLA splits
# small loops over the threads).
CHUNK_BYTES = 1 << 16
CHUNK = (64, 256)

# Parts of a batch that take part in each chunk: a multiple of the usual numbers of devices.
SPREAD = 64


def over_chunks(
    function: Callable[..., tuple[jax.Array, ...]], *arrays: jax.Array, chunked: bool
) -> tuple[jax.Array, ...]:
    """Apply a function of batch-minor arrays (columns, rows, chunk) to stacks (..., rows, columns).

    The results (..., chunk) come back as (batch, ...).

    A batch spread over devices must stay where it is, and whether it is spread cannot be seen here:
    so each chunk takes a few matrices from each of up to SPREAD equal parts of the batch.
    """
    batch = arrays[0].shape[:-2]
    count = math.prod(batch)
    flat = [a.reshape(count, *a.shape[-2:]) for a in arrays]

    def one(arrays):
        results = function(*(a.transpose(2, 1, 0) for a in arrays))
        return tuple(jnp.moveaxis(x, -1, 0) for x in results)

    bytes_each = sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in flat)
    most = max(CHUNK[0], min(CHUNK[1], CHUNK_BYTES // (2 * bytes_each)))
    chunks = max(1, -(-count // most)) if chunked else 1
    if chunks == 1:
        if chunked and count % 16:  # whole vector registers
            flat = [_filled(a, -count % 16) for a in flat]
        results = lax.map(one, [a[None] for a in flat])
        results = (x[0, :count] for x in results)
        return tuple(x.reshape(*batch, *x.shape[1:]) for x in results)

    parts = math.gcd(count, SPREAD)
    unit = 16 // math.gcd(16, parts)
    length = count // parts
    chunks = -(-length // (unit * max(1, most // (unit * parts))))
    share = unit * -(-length // (unit * chunks))  # of one part in one chunk
    flat = [a.reshape(parts, length, *a.shape[1:]) for a in flat]

    # The last chunk starts early enough to be whole (`dynamic_slice` clamps its start), and does a
    # few matrices again: to pad copies the whole batch, and all results.
    def chunk(i):
        taken = (lax.dynamic_slice_in_dim(a, i * share, share, axis=1) for a in flat)
        results = one([a.reshape(parts * share, *a.shape[2:]) for a in taken])
        return tuple(x.reshape(parts, share, *x.shape[1:]) for x in results)

    def put(i, results):
        return tuple(
            lax.dynamic_update_slice_in_dim(whole, x, i * share, axis=1)
            for whole, x in zip(results, chunk(i), strict=True)
        )

    results = tuple(_blank(x, length, flat[0]) for x in jax.eval_shape(chunk, 0))
    results = lax.fori_loop(0, chunks, put, results)
    return tuple(x.reshape(*batch, *x.shape[2:]) for x in results)


def _filled(a: jax.Array, more: int) -> jax.Array:
    """Return (count + more, m, n) with identities at the end: zeros have no singular vectors."""
    count, m, n = a.shape
    padded = jnp.pad(a, ((0, more), (0, 0), (0, 0)))
    given = jnp.arange(count + more)[:, None, None] < count
    return jnp.where(given, padded, jnp.eye(m, n, dtype=a.dtype))


def _blank(x: jax.ShapeDtypeStruct, length: int, like: jax.Array) -> jax.Array:
    """Return zeros (parts, length, ...) whose first axis lies on a mesh as that of ``like``."""
    zeros = jnp.zeros((x.shape[0], length, *x.shape[2:]), x.dtype)
    sharding = jax.typeof(like).sharding
    if any(sharding.spec):  # Explicit
        first = PartitionSpec(sharding.spec[0])
        zeros = jax.sharding.reshard(zeros, NamedSharding(sharding.mesh, first))
    return alike(zeros, like)
