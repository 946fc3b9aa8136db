"""Norms and ranks of one matrix, a batch or an operator; every derivative right at ties."""

from .largest import spectral as spectral
from .largest import spectral_bound as spectral_bound
from .largest import spectral_init as spectral_init
from .largest import spectral_step as spectral_step
from .sums import effective_rank as effective_rank
from .sums import frobenius as frobenius
from .sums import ky_fan as ky_fan
from .sums import log_volume as log_volume
from .sums import nuclear as nuclear
from .sums import orthogonality as orthogonality
from .sums import schatten as schatten
from .sums import stable_rank as stable_rank
from .sums import tail_energy as tail_energy
