"""Matrices known by their products: dense, sparse, composed, implicit."""

from .adapters import Host as Host
from .adapters import as_operator as as_operator
from .adapters import check_adjoint as check_adjoint
from .adapters import check_linear as check_linear
from .base import Operator as Operator
from .base import Product as Product
from .base import Scaled as Scaled
from .base import Sum as Sum
from .base import Transpose as Transpose
from .compose import Centered as Centered
from .compose import LowRank as LowRank
from .convolution import Convolution as Convolution
from .dense import Dense as Dense
from .function import Function as Function
from .function import Jacobian as Jacobian
from .rowblocks import RowBlocks as RowBlocks
from .sparse import Sparse as Sparse
