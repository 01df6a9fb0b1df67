"""Adds, removes or replaces the norm layers of blocks during a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn

from tui_descent.scenario.spec import NormSpec
from tui_descent.training.setup.nets import parts
from tui_descent.training.setup.nets.block import Block
from tui_descent.training.steering.surgery.calibration import Calibration, Probe
from tui_descent.training.steering.surgery.transition import ParameterChanges, parameter_changes

LEARNED = 0.9  # a net has learned something if its loss is below this fraction of the loss of all-zero outputs


def norm_way(loss: float, loss_of_zeros: float) -> Literal["calibrated", "instant"]:
    """How a norm layer is added by default, given the net's loss and the loss of all-zero outputs. If the net has
    learned something, its outputs should be kept, so the norm layer is calibrated. Otherwise it is added without
    calibration.
    """
    return "calibrated" if loss < LEARNED * loss_of_zeros else "instant"


def set_norm(
    model: nn.Module, blocks: Mapping[str, Block], spec: NormSpec, *, probe: Probe | None = None
) -> ParameterChanges:
    """Give each of the `blocks` the norm layer of `spec`, or remove it if `spec` names none.

    A block that already has this norm layer keeps it. `probe` returns the net's outputs on a batch and their loss in
    eval mode. With `probe`, new norm layers are calibrated: γ and β are fitted so that the outputs hardly change.
    Without it, γ = 1 and β = 0. Measured on digits with a plain ReLU net of depth 8 and width 48 at a loss of 0.006:
    the loss on the batch rises by at most 0.05. Without calibration it rises by 0.2 to 1.9. Removing a norm layer
    leaves nothing to fit. Raises `ValueError` if a block has no place `spec.where`.
    """
    for name, block in blocks.items():
        if spec.name != "none" and spec.where not in block.norm_places:
            raise ValueError(
                f'where = "{spec.where}" is not possible in {name}; allowed: {", ".join(block.norm_places)}'
            )
    to_change = {name: block for name, block in blocks.items() if not _has_norm(block, spec)}
    before = dict(model.named_parameters())
    calibration = None
    if probe is not None and spec.name != "none" and to_change:
        calibration = Calibration(model, to_change, spec.where, probe)
    for block in to_change.values():
        block.put_norm(_new_norm(block, spec), spec.where)
    if calibration is not None:
        calibration.fit()
    return parameter_changes(model, before)


def _has_norm(block: Block, spec: NormSpec) -> bool:
    names = {nn.LayerNorm: "layer", parts.ChannelNorm: "layer", nn.RMSNorm: "rms", parts.ChannelRMSNorm: "rms"}
    present = "none" if block.norm is None else names.get(type(block.norm), "")
    return present == spec.name and (spec.name == "none" or block.where == spec.where)


def _new_norm(block: Block, spec: NormSpec) -> nn.Module | None:
    weight = next(p for p in block.core.parameters() if p.dim() >= 2)
    images = weight.dim() == 4
    # A "mid" norm layer has the width of the core's output. All others have the width of the block, which is that of
    # the core's input.
    width = weight.shape[0] if spec.where == "mid" else weight.shape[1]
    norm = parts.norm(spec, width, images=images)
    return None if norm is None else norm.to(weight.device, weight.dtype).train(block.training)
