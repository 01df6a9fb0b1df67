"""Surgery: changes to the network itself between two steps. Each kind of change is one file, which states its effect on
the network's outputs.
"""

from tui_descent.training.steering.surgery.activation import (
    BLEND_STEPS,
    Blend,
    continue_activation,
    continue_module,
    replace_module,
    swap_activation,
    swap_module,
)
from tui_descent.training.steering.surgery.dropout import set_dropout
from tui_descent.training.steering.surgery.norm import norm_way, set_norm
from tui_descent.training.steering.surgery.observer import ForwardObserver, Observation
from tui_descent.training.steering.surgery.plain import plain
from tui_descent.training.steering.surgery.residual import (
    RESIDUAL_STEPS,
    WAY_STEPS,
    close_skip,
    continue_skip,
    default_scale,
    fix_branches,
    is_learnt,
    open_skip,
    put_rezero,
    resolve_way,
)
from tui_descent.training.steering.surgery.transition import ParameterChanges, Transition
from tui_descent.training.steering.surgery.user_blocks import UserBlock
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
    "ForwardObserver",
    "Observation",
    "ParameterChanges",
    "Transition",
    "UserBlock",
    "close_skip",
    "continue_activation",
    "continue_module",
    "continue_skip",
    "default_scale",
    "fix_branches",
    "freeze",
    "is_learnt",
    "kick",
    "norm_way",
    "open_skip",
    "parameters_of",
    "plain",
    "put_rezero",
    "reinitialize",
    "replace_module",
    "resolve_way",
    "set_dropout",
    "set_norm",
    "swap_activation",
    "swap_module",
    "unfreeze",
]
