"""One chain-rule reading with the factor of each part of the blocks, for those who step through the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import msgspec
import torch
from torch import Tensor, nn

from tui_descent.instruments.chain_rule_ledger import ChainRuleLedger, is_block
from tui_descent.instruments.failures import Failures
from tui_descent.instruments.gradient_hooks import GradientHooks
from tui_descent.instruments.module_hooks import Args, Kwargs, ModuleHooks, first_tensor
from tui_descent.instruments.net_structure import NetStructure
from tui_descent.instruments.same_batch import gradient, undisturbed
from tui_descent.protocol.events import BlockPart, LedgerEntry, PartFactor
from tui_descent.training.setup.build import Setup
from tui_descent.training.setup.nets.block import Block

NO_BLOCKS = "this net has no blocks that the chain rule is computed for"
NO_BATCH = "no batch has been trained on yet"
PART = "the gradients between the parts of a block"
_CORES: dict[str, BlockPart] = {"attention": "attention", "conv": "convolution"}  # of other kinds: "weights"


def backward_pass(setup: Setup, net: NetStructure) -> list[LedgerEntry]:
    """The chain-rule entries of all blocks with their parts, for the last batch and the current weights.

    The batch is run forward and backward again. Gradients, buffers and random numbers stay as they are. Blocks for
    which the ledger has no formulas, such as attention, have the factors that autograd gives. Raises `ValueError` with
    the reason if the pass cannot be measured.
    """
    blocks = [(unit.name, unit.module) for unit in net.units if isinstance(unit.module, Block)]
    if not blocks:
        raise ValueError(NO_BLOCKS)
    if not setup.size():
        raise ValueError(NO_BATCH)
    ledger, between = ChainRuleLedger([block for block in blocks if is_block(block[1])]), GradientsBetweenParts(blocks)
    ledger.attach()
    between.attach()
    try:
        with undisturbed(setup.model), torch.enable_grad():
            gradient(setup.replay_forward(), [p for p in setup.model.parameters() if p.requires_grad])
        by_formula = {entry.block: entry for entry in ledger.entries(parts=True).result()}
        return _with_products(
            [
                entry if (entry := by_formula.get(name)) is not None and entry.parts else between.entry(n)
                for n, (name, _) in enumerate(blocks)
            ]
        )
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise ValueError(f"the backward pass could not be measured: {reason}") from error
    finally:
        ledger.detach()
        between.detach()


def _with_products(entries: Sequence[LedgerEntry]) -> list[LedgerEntry]:
    found, product = [], 1.0
    for entry in reversed(entries):
        product *= 1.0 if entry.factor is None else entry.factor
        known = None if entry.factor is None else product
        found.append(msgspec.structs.replace(entry, product=known))
    return found[::-1]


class GradientsBetweenParts:
    """Keeps the gradients between the parts of the `blocks` in one backward pass."""

    def __init__(self, blocks: Sequence[tuple[str, nn.Module]]) -> None:
        failures = Failures()
        self._blocks = [(name, block) for name, block in blocks if isinstance(block, Block)]
        self._hooks = hooks = ModuleHooks(failures)
        # Keys: the number of the block; and "input", "sum" (with the input, if there is a skip), or the name of the
        # child module whose output it is.
        self._gradients: GradientHooks[tuple[int, str], Tensor] = GradientHooks(lambda grad: grad, failures)
        for n, (_, block) in enumerate(self._blocks):
            hooks.on_input(block, partial(self._input, (n, "input")), PART)
            for name, child in block.named_children():
                hooks.on_output(child, partial(self._output, (n, name)), PART)
            if _norm_is_last(block):
                assert block.norm is not None
                hooks.on_input(block.norm, partial(self._input, (n, "sum")), PART)
            else:
                hooks.on_output(block, partial(self._output, (n, "sum")), PART)

    def attach(self) -> None:
        """Measure the next pass."""
        self._hooks.attach()

    def detach(self) -> None:
        """Remove the hooks."""
        self._hooks.detach()
        self._gradients.detach()

    @torch.no_grad()
    def entry(self, n: int) -> LedgerEntry:
        """The factors of block `n` and of its parts, in the order of the backward pass: ratios of the norms of the
        gradients before and after each part.
        """
        name, block = self._blocks[n]
        children = [child for child, _ in block.named_children()]
        norms: list[float | None] = []
        parts: list[BlockPart] = []
        if _norm_is_last(block):
            parts.append("norm")
            norms.append(self._norm(n, children.pop()))
        norms.append(self._norm(n, "sum"))
        if block.skip is not None:
            parts.append("scale")
            norms.append(self._norm(n, children[-1]))
        for child, before in zip(children[::-1], [*children[-2::-1], ""], strict=True):
            parts.append(_part(block, child))
            norms.append(self._norm(n, before) if before else self._branch_norm(n, block))
        if block.skip is not None:
            parts.append("skip")
            norms.append(self._norm(n, "input"))
        ratios = [None if a is None or not b else a / b for b, a in pairwise(norms)]
        first, last = norms[0], norms[-1]
        factor = None if last is None or not first else last / first
        known = tuple(map(PartFactor, parts, ratios)) if None not in norms else ()
        return LedgerEntry(block=name, factor=factor, autograd=factor, discrepancy=None, product=None, parts=known)

    def _norm(self, n: int, name: str) -> float | None:
        found = self._gradients.get((n, name))
        return None if found is None else found.double().norm().item()

    def _branch_norm(self, n: int, block: Block) -> float | None:
        """The norm of what the branch adds to the gradient at the block's input."""
        at_input, at_sum = self._gradients.get((n, "input")), self._gradients.get((n, "sum"))
        if at_input is None or block.skip is None:
            return self._norm(n, "input")
        return None if at_sum is None else (at_input.double() - block.skip.gate * at_sum.double()).norm().item()

    def _input(self, key: tuple[int, str], args: Args) -> None:
        self._gradients.listen(key, first_tensor(args), PART)

    def _output(self, key: tuple[int, str], args: Args, kwargs: Kwargs, output: Tensor) -> None:
        self._gradients.listen(key, first_tensor(output), PART)


def _norm_is_last(block: Block) -> bool:
    """Whether a norm layer comes after the skip."""
    return block.norm is not None and block.where == "post" and block.norm_after_skip


def _part(block: Block, child: str) -> BlockPart:
    if child == block.kind:
        return _CORES.get(block.kind, "weights")
    return {"norm": "norm", "activation": "activation", "out": "out", "dropout": "dropout"}[child]  # type: ignore[return-value]
