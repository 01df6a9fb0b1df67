"""Surgery: changes to the network itself between two steps. Each kind of change is one file, which states its effect on
the network's outputs.
"""

from tui_descent.training.steering.surgery.activation import (
    BLEND_STEPS,
    Blend,
    replace_module,
    swap_activation,
    swap_module,
)
from tui_descent.training.steering.surgery.dropout import set_dropout
from tui_descent.training.steering.surgery.norm import norm_way, set_norm
from tui_descent.training.steering.surgery.residual import (
    RESIDUAL_STEPS,
    WAY_STEPS,
    close_skip,
    default_scale,
    open_skip,
    resolve_way,
)
from tui_descent.training.steering.surgery.transition import ParameterChanges, Transition
from tui_descent.training.steering.surgery.user_blocks import BlockFinder, UserBlock
from tui_descent.training.steering.surgery.weights import (
    DEFAULT_KICK,
    freeze,
    kick,
    parameters_of,
    reinitialize,
    unfreeze,
)

__all__ = [
    "BLEND_STEPS",
    "DEFAULT_KICK",
    "RESIDUAL_STEPS",
    "WAY_STEPS",
    "Blend",
    "BlockFinder",
    "ParameterChanges",
    "Transition",
    "UserBlock",
    "close_skip",
    "default_scale",
    "freeze",
    "kick",
    "norm_way",
    "open_skip",
    "parameters_of",
    "reinitialize",
    "replace_module",
    "resolve_way",
    "set_dropout",
    "set_norm",
    "swap_activation",
    "swap_module",
    "unfreeze",
]
