"""Low-rank adapters of any model: a sparse tree beside the parameters, applied inside the loss.

    adapters = lora.init(key, params, rank=8, where="attention.*kernel")
    loss     = lambda adapters: error(model(lora.apply(params, adapters), x), y)

The base is never changed. An `Adapter` stands at the place of each adapted leaf and None at every
other, so gradients, optimizers and checkpoints see adapters only. What an adapter carries beside
its trained arrays (the start of PiSSA and MiLoRA, norms of DoRA) gets no gradient; an optimizer
that changes parameters without one, by weight decay, is to be masked:
``optax.masked(optax.adamw(1e-3), lora.trainable)``.
"""

from .adapter import Adapter as Adapter
from .adapter import apply as apply
from .adapter import trainable as trainable
from .change import combine as combine
from .change import extract as extract
from .change import to_plain as to_plain
from .change import unmerge as unmerge
from .initial import init as init
from .peft import to_peft as to_peft
