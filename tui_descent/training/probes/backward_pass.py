"""One chain-rule reading with the factor of each part of the blocks, for those who step through the backward pass."""

from __future__ import annotations

import torch

from tui_descent.instruments.chain_rule_ledger import ChainRuleLedger, is_block
from tui_descent.instruments.net_structure import NetStructure
from tui_descent.instruments.same_batch import gradient, undisturbed
from tui_descent.protocol.events import LedgerEntry
from tui_descent.training.setup.build import Setup

NO_BLOCKS = "this net has no blocks that the chain rule is computed for"
NO_BATCH = "no batch has been trained on yet"


def backward_pass(setup: Setup, net: NetStructure) -> list[LedgerEntry]:
    """The chain-rule entries of all blocks with their parts, for the last batch and the current weights.

    The batch is run forward and backward again. Gradients, buffers and random numbers stay as they are. Raises
    `ValueError` with the reason if this is not possible.
    """
    blocks = [(unit.name, unit.module) for unit in net.units if is_block(unit.module)]
    if not blocks:
        raise ValueError(NO_BLOCKS)
    if not setup.size():
        raise ValueError(NO_BATCH)
    ledger = ChainRuleLedger(blocks)
    ledger.attach()
    try:
        with undisturbed(setup.model), torch.enable_grad():
            gradient(setup.replay_forward(), [p for p in setup.model.parameters() if p.requires_grad])
        return ledger.entries(parts=True).result()
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise ValueError(f"the backward pass could not be measured: {reason}") from error
    finally:
        ledger.detach()
