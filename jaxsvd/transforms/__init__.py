"""Projections and gradient transformations for optax, on the singular values of parameters."""

from .low_rank import scale_by_low_rank as scale_by_low_rank
from .projections import projection_nuclear_ball as projection_nuclear_ball
from .projections import projection_rank as projection_rank
from .projections import projection_spectral_ball as projection_spectral_ball
from .projections import projection_stiefel as projection_stiefel
from .updates import clip_updates_spectral as clip_updates_spectral
from .updates import keep_params_spectral as keep_params_spectral
from .updates import prox_nuclear as prox_nuclear
from .updates import scale_by_polar as scale_by_polar
