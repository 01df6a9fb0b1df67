"""Normalisation put into blocks, taken out or changed in mid-run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn

from tui_descent.scenario.spec import NormSpec
from tui_descent.training.setup.nets import parts
from tui_descent.training.setup.nets.block import Block
from tui_descent.training.steering.surgery.calibration import Before, Probe
from tui_descent.training.steering.surgery.transition import Changed, parameters_changed

LEARNT = 0.9  # of the loss of outputs that are all 0: a net above it does nothing yet that is worth keeping


def norm_way(loss: float, silent: float) -> Literal["calibrated", "instant"]:
    """How a norm comes in unless said otherwise, from the net's loss and that of outputs which are all 0.

    A net that has learnt something keeps what it does; to one that is sick a norm that keeps it is no cure.
    """
    return "calibrated" if loss < LEARNT * silent else "instant"


def set_norm(model: nn.Module, blocks: Mapping[str, Block], spec: NormSpec, *, probe: Probe | None = None) -> Changed:
    """Give every one of the blocks the norm of the spec, or none; a block that has it already keeps it.

    With `probe`, the net's outputs on a batch and their loss in eval mode, the way is calibrated: γ and β are fitted so
    that the outputs stay what they were. Without, γ = 1 and β = 0. Digits, plain ReLU D8 W48 at a loss of 0.006: the
    loss on the batch rises by at most 0.05 (0.2 to 1.9 by an instant one). Taking a norm out is never calibrated: a
    plain block has nothing to be fitted. Raises `ValueError` for a place that a block does not have.
    """
    for name, block in blocks.items():
        if spec.name != "none" and spec.where not in block.norm_places:
            raise ValueError(f'norm "{spec.where}" has no place in {name}; allowed: {", ".join(block.norm_places)}')
    todo = {name: block for name, block in blocks.items() if not _has(block, spec)}
    before = dict(model.named_parameters())
    stood = Before(model, todo, spec.where, probe) if probe is not None and spec.name != "none" and todo else None
    for block in todo.values():
        block.put_norm(_fresh(block, spec), spec.where)
    if stood is not None:
        stood.fit()
    return parameters_changed(model, before)


def _has(block: Block, spec: NormSpec) -> bool:
    kind = {nn.LayerNorm: "layer", parts.ChannelNorm: "layer", nn.RMSNorm: "rms", parts.ChannelRMSNorm: "rms"}
    present = "none" if block.norm is None else kind.get(type(block.norm), "")
    return present == spec.name and (spec.name == "none" or block.where == spec.where)


def _fresh(block: Block, spec: NormSpec) -> nn.Module | None:
    weight = next(p for p in block.core.parameters() if p.dim() >= 2)
    images = weight.dim() == 4
    # The core's input is as wide as the block; a norm between it and the activation as wide as its output.
    width = weight.shape[0] if spec.where == "mid" else weight.shape[1]
    norm = parts.norm(spec, width, images=images)
    return None if norm is None else norm.to(weight.device, weight.dtype).train(block.training)
