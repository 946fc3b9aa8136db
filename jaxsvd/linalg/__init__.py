"""Linear algebra on the SVD, differentiable at ties and at constant rank.

Batched over leading axes, real and complex, compiled as one program each. First and second
derivatives, forward and reverse, are those of the function: where values are tied, where the rank
is deficient but constant, and at any scale. No function here differentiates singular vectors where
they are not determined.
"""

from .alignment import Alignment as Alignment
from .alignment import Polar as Polar
from .alignment import Procrustes as Procrustes
from .alignment import kabsch as kabsch
from .alignment import orthogonalize as orthogonalize
from .alignment import polar as polar
from .alignment import procrustes as procrustes
from .functions import expm as expm
from .functions import inverse_root as inverse_root
from .functions import log_euclidean_distance as log_euclidean_distance
from .functions import logm as logm
from .functions import sqrtm as sqrtm
from .hermitian import JordanWielandt as JordanWielandt
from .hermitian import jordan_wielandt as jordan_wielandt
from .hermitian import rayleigh_quotient as rayleigh_quotient
from .hermitian import whitening as whitening
from .rank import cond as cond
from .rank import matrix_rank as matrix_rank
from .rank import optimal_rank as optimal_rank
from .rank import rank_for_energy as rank_for_energy
from .solve import lstsq as lstsq
from .solve import pinv as pinv
from .solve import tls as tls
from .spaces import Subspaces as Subspaces
from .spaces import null_space as null_space
from .spaces import orth as orth
from .spaces import principal_angles as principal_angles
from .spaces import subspaces as subspaces
