"""Matrix completion: the low-rank matrix behind some of its entries, never formed.

Entries come as a sparse matrix whose stored values are what was observed, zeros included. All
iterates are low rank (factors) or sparse (values at the observed places), so memory is
O((m + n) r) and that of the entries, and a step costs two products with each.

Example:
    >>> import jax.numpy as jnp, jaxsvd
    >>> from jax.experimental import sparse
    >>> M = jnp.outer(jnp.arange(1.0, 7.0), jnp.array([1.0, -1.0, 2.0, 1.0, 3.0]))
    >>> seen = jnp.arange(30).reshape(6, 5) % 4 > 0  # 22 of 30 entries
    >>> a = sparse.BCOO.fromdense(jnp.where(seen, M, 0))
    >>> done = jaxsvd.models.completion.soft_impute(a, 0.01, 2)
    >>> bool(jnp.max(jnp.abs(done.to_dense() - M)) < 0.05)
    True

References:
    Mazumder, Hastie and Tibshirani (2010), JMLR 11; Cai, Candes and Shen (2010), SIAM J. Optim. 20.
"""

from .observed import CompletionInfo as CompletionInfo
from .observed import entries as entries
from .soft_impute import path as path
from .soft_impute import soft_impute as soft_impute
from .thresholding import singular_value_thresholding as singular_value_thresholding
