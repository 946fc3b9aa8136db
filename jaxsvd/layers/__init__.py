"""Layers made of factors: pytrees to call, in Equinox, Flax, Haiku or plain JAX alike.

A layer holds its arrays as leaves and everything else as structure. It is called as
``layer(x, *, key=None)`` on the last axis of ``x``, so with or without a batch; ``key`` is there
for containers that pass one on, and not used. Kernels are (inputs, outputs), as in Flax and
Haiku: for an Equinox or PyTorch weight pass ``weight.T``. Products run at the precision of
`jax.default_matmul_precision`, as those of the layers beside them.

Equinox: a field of a module. Flax NNX: ``nnx.Param(layer)``. Flax linen: ``self.param(name, lambda
key: layer)``. Haiku: made from ``hk.get_parameter`` inside the module.
"""

from .convolution import LowRankConv as LowRankConv
from .linear import LowRankLinear as LowRankLinear
from .linear import SpectralLinear as SpectralLinear
from .orthogonal import SVDLinear as SVDLinear
from .orthogonal import keep_orthogonal as keep_orthogonal
from .whiten import Whiten as Whiten
from .whiten import WhitenState as WhitenState
