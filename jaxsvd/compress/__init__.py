"""A trained model made smaller: its weights replaced by factors, within a budget of parameters.

    metrics = compress.collect_gram(model, params, batches)        # what the weights have seen
    small, report = compress.to_budget(params, 0.5, metrics)
    loss = error(model(compress.densify(small), x), y)

`to_budget` decides which weight gets which rank; `factorize` is the best approximation of one
weight, in the norm that its inputs and outputs define. `densify` gives back arrays, inside a jitted
function too, so a model needs no change. `rank_gates` learns the ranks from the loss itself. `save`
and `load` keep compressed parameters in files.
"""

from .allocate import Allocation as Allocation
from .allocate import allocate as allocate
from .budget import LeafReport as LeafReport
from .budget import Report as Report
from .budget import to_budget as to_budget
from .factorize import Factor as Factor
from .factorize import factorize as factorize
from .gates import apply_gates as apply_gates
from .gates import gate_budget as gate_budget
from .gates import rank_gates as rank_gates
from .gram import collect_gram as collect_gram
from .storage import load as load
from .storage import save as save
from .storage import save_metrics as save_metrics
from .stored import Folded as Folded
from .stored import densify as densify
