"""Derivative rules as plain linear algebra: pushforwards and pullbacks of every primitive.

Each rule is a function of factors and tangents (or cotangents), apart from any mechanism of
differentiation. Cotangents are JAX's: `svd_pullback` equals `jax.vjp` of `jaxsvd.svd`.
"""

from ..algorithms.phase import fix_phases as fix_phases
from .core import core_pullback as core_pullback
from .core import core_pushforward as core_pushforward
from .core import full_numbers as full_numbers
from .dense import svd_pullback as svd_pullback
from .dense import svd_pushforward as svd_pushforward
from .dense import svdvals_pullback as svdvals_pullback
from .dense import svdvals_pushforward as svdvals_pushforward
from .eigh import eigh_pullback as eigh_pullback
from .eigh import eigh_pushforward as eigh_pushforward
from .spectral import spectral_pullback as spectral_pullback
from .spectral import spectral_pushforward as spectral_pushforward
from .truncated import Numbers as Numbers
from .truncated import iterative_numbers as iterative_numbers
from .truncated import truncated_pullback as truncated_pullback
from .truncated import truncated_pushforward as truncated_pushforward
