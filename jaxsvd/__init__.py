"""The singular value decomposition in JAX, with derivatives that are right everywhere."""

from . import rules as rules
from ._types import CoreSVD as CoreSVD
from ._types import SVDResult as SVDResult
from .primitives.core import core_svd as core_svd
from .primitives.core import low_rank as low_rank
from .primitives.spectral import core_map as core_map
from .primitives.spectral import spectral_map as spectral_map
from .primitives.spectral import spectral_sum as spectral_sum
from .primitives.svd import svd as svd
from .primitives.svd import svdvals as svdvals

__version__ = "0.1.0"

__all__ = [
    "CoreSVD",
    "SVDResult",
    "core_map",
    "core_svd",
    "low_rank",
    "rules",
    "spectral_map",
    "spectral_sum",
    "svd",
    "svdvals",
]
