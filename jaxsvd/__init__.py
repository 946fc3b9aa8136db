"""The singular value decomposition in JAX, with derivatives that are right everywhere."""

from . import _openblas as _openblas
from . import compress as compress
from . import foreign as foreign
from . import layers as layers
from . import linalg as linalg
from . import lora as lora
from . import models as models
from . import norms as norms
from . import operators as operators
from . import plot as plot
from . import regularizers as regularizers
from . import rules as rules
from . import streaming as streaming
from . import track as track
from . import transforms as transforms
from ._types import CoreEigh as CoreEigh
from ._types import CoreSVD as CoreSVD
from ._types import EighResult as EighResult
from ._types import Info as Info
from ._types import SVDResult as SVDResult
from .diagnosis import Diagnosis as Diagnosis
from .diagnosis import diagnose as diagnose
from .errorbars import value_and_grad_with_error as value_and_grad_with_error
from .foreign import safe as safe
from .primitives.adaptive import adaptive_svd as adaptive_svd
from .primitives.core import core_svd as core_svd
from .primitives.core import low_rank as low_rank
from .primitives.eigenpairs import core_eigh as core_eigh
from .primitives.eigenpairs import truncated_eigh as truncated_eigh
from .primitives.eigh import eigh as eigh
from .primitives.gauge import GaugeError as GaugeError
from .primitives.gauge import GaugeWarning as GaugeWarning
from .primitives.gauge import gauge_check as gauge_check
from .primitives.hermitian import core_map as core_map
from .primitives.hermitian import hermitian_map as hermitian_map
from .primitives.hermitian import hermitian_sum as hermitian_sum
from .primitives.randomized import randomized_svd as randomized_svd
from .primitives.randomized import residuals as residuals
from .primitives.spectral import spectral_map as spectral_map
from .primitives.spectral import spectral_sum as spectral_sum
from .primitives.svd import svd as svd
from .primitives.svd import svdvals as svdvals
from .primitives.truncated import truncated_svd as truncated_svd
from .streaming import svd_update as svd_update

__version__ = "0.1.0"

__all__ = [
    "CoreEigh",
    "CoreSVD",
    "Diagnosis",
    "EighResult",
    "GaugeError",
    "GaugeWarning",
    "Info",
    "SVDResult",
    "adaptive_svd",
    "compress",
    "core_eigh",
    "core_map",
    "core_svd",
    "diagnose",
    "eigh",
    "foreign",
    "gauge_check",
    "hermitian_map",
    "hermitian_sum",
    "layers",
    "linalg",
    "lora",
    "low_rank",
    "models",
    "norms",
    "operators",
    "plot",
    "randomized_svd",
    "regularizers",
    "residuals",
    "rules",
    "safe",
    "spectral_map",
    "spectral_sum",
    "streaming",
    "svd",
    "svd_update",
    "svdvals",
    "track",
    "transforms",
    "truncated_eigh",
    "truncated_svd",
    "value_and_grad_with_error",
]
