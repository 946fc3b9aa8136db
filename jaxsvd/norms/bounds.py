"""Certified upper bounds of s_1 by Gram iteration, in products alone.

With G_0 = A / c_0 and G_{t+1} = G_t^H G_t / c_{t+1}, c_t powers of two, s_1(G_t)^2 =
c_{t+1} s_1(G_{t+1}), and after T steps s_1(G_T) <= |G_T|_F: the bound exceeds s_1 by no more than
r^(1/2^(T+1)), r the rank. In floating point the Gram matrix comes with an error E,

    |fl(G^H G) - G^H G| <= gamma_q |G|^H |G|  entry by entry, so |E|_2 <= |E|_F <= gamma_q |G|_F^2,
    s_1(G_t)^2 <= c_{t+1} s_1(G_{t+1}) + gamma_q |G_t|_F^2,          gamma_q = q u / (1 - q u)

with q additions one after the other (Higham (2002), equation 3.5, whatever their order) and
u = eps/2. So the bounds are put together backwards with that term under every root, each root
rounded up by 4 eps. A long side is summed in chunks, which makes q about twice its root: the term
is 8e-6 |G|_F^2 for 4096 rows in float32. It holds for products in IEEE arithmetic of the dtype;
entries below the smallest normal number of the dtype count as zero.

References: Delattre, Barthelemy, Araujo and Allauzen (2023), "Efficient bound of Lipschitz constant
for convolutional layers by Gram iteration", algorithm 1.
"""

import jax
import jax.numpy as jnp
from jax import lax

from .. import _tolerances
from ..algorithms.products import adjoint, adjoint_product, product
from ..primitives.batching import power_of_two_scale

# Terms that are added in one go; a chunk is still a matrix product at full speed.
CHUNK = 64


def gamma(q: int, dtype) -> float:
    """Return the relative error of q additions and multiplications, gamma_q, in this dtype.

    Of a complex inner product of length q either part is a real one of length 2 q.
    """
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    q = 2 * q if is_complex else q
    qu = q * _tolerances.eps(dtype) / 2
    return (2 if is_complex else 1) * qu / (1 - qu) if qu < 0.5 else float("inf")


def _roundings(length: int) -> int:
    chunks = -(-length // CHUNK)
    return length if chunks == 1 else CHUNK + chunks


def _gram(a: jax.Array) -> jax.Array:
    """Return A^H A for m >= n, summed over chunks of rows."""
    m, n = a.shape
    chunks = -(-m // CHUNK)
    if chunks == 1:
        return adjoint_product(a, a)
    padded = jnp.pad(a, ((0, chunks * CHUNK - m), (0, 0)))
    blocks = padded.reshape(chunks, CHUNK, n)
    start = adjoint_product(blocks[0], blocks[0])
    add = lambda total, x: (total + product(adjoint(x), x), None)  # noqa: E731
    return lax.scan(add, start, blocks[1:])[0]


def _squares(a: jax.Array) -> jax.Array:
    """Return |A|_F^2, rounded up."""
    m, n = a.shape
    by_row = jnp.sum(jnp.real(a * jnp.conj(a)), axis=1)
    return jnp.sum(by_row) * (1 + (m + n + 4) * _tolerances.eps(a.dtype))


def _root_up(x: jax.Array) -> jax.Array:
    """Return sqrt(x), rounded up, with derivative 0 at 0."""
    root = jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))
    return root * (1 + 4 * _tolerances.eps(x.dtype))


def gram_bound(a: jax.Array, steps: int) -> jax.Array:
    """Return an upper bound of s_1 of one matrix (m, n) in float32 or wider."""
    if min(a.shape) == 0:
        return jnp.zeros((), jnp.finfo(a.dtype).dtype)
    G = a if a.shape[0] >= a.shape[1] else adjoint(a)
    scale = power_of_two_scale(G)
    G = G / scale.astype(G.dtype)
    if steps == 0:
        return scale * _root_up(_squares(G))
    # The first step shortens the matrix; all others are alike.
    G, first = _step(G)
    G, rest = lax.scan(lambda G, _: _step(G), G, length=steps - 1)
    bound, _ = lax.scan(_backwards, _root_up(_squares(G)), rest, reverse=True)
    return scale * _backwards(bound, first)[0]


def _step(G: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return G^H G / c, and (c, the rounding error of G^H G)."""
    relative = gamma(_roundings(G.shape[0]) + 4, G.dtype)
    error = relative * lax.stop_gradient(_squares(G))
    G = _gram(G)
    scale = power_of_two_scale(G)
    return G / scale.astype(G.dtype), (scale, error)


def _backwards(bound: jax.Array, of_step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    """Return the bound of G_t from that of G_{t+1}."""
    scale, error = of_step
    return _root_up((scale * bound + error) * (1 + 4 * _tolerances.eps(bound.dtype))), None
