"""Muon for the hidden matrices and AdamW for the rest, behind one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tui_descent.scenario.optimizers import MUON_ADAMW_RATIO

# Moonshot's scaling, 0.2·√max(rows, columns): the update has AdamW's usual size, so that one rate serves both parts
# (Liu et al. 2025, arXiv 2502.16982).
SIZED_AS = "match_rms_adamw"
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` on the parameters in `hidden`, `torch.optim.AdamW` on all others, in one set of groups.

    A group is one of the user's, whole and in its order; its rate is Muon's, AdamW's is `adamw_lr_ratio` times that.
    Per parameter the state is `momentum_buffer` (hidden) or `step`, `exp_avg`, `exp_avg_sq`. Parameters that come later
    go to AdamW. Raises `ValueError` when a hidden parameter is no matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        hidden: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        adamw_lr_ratio: float = MUON_ADAMW_RATIO,
    ) -> None:
        self._hidden = list(hidden)
        self._set_up()
        options = {"momentum": momentum, "betas": betas, "weight_decay": weight_decay, "eps": eps}
        super().__init__(params, {"lr": lr, "adamw_lr_ratio": adamw_lr_ratio, **options})

    def is_hidden(self, parameter: Tensor) -> bool:
        """Whether it is Muon's; else it is AdamW's."""
        return id(parameter) in self._ids

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of both parts."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Told anew each time: rates, groups and their parameters are anybody's to change between two steps.
        self._muon.param_groups = [self._muon.defaults | self._muon_part(g) for g in self.param_groups]
        self._adamw.param_groups = [self._adamw.defaults | self._adamw_part(g) for g in self.param_groups]
        for part in (self._muon, self._adamw):
            part.state = self.state
            part.step()  # type: ignore[no-untyped-call]
        return loss

    def _muon_part(self, group: dict[str, Any]) -> dict[str, Any]:
        mine = [p for p in group["params"] if id(p) in self._ids]
        return {"params": mine, "adjust_lr_fn": SIZED_AS} | {k: group[k] for k in ("lr", "momentum", "weight_decay")}

    def _adamw_part(self, group: dict[str, Any]) -> dict[str, Any]:
        mine = [p for p in group["params"] if id(p) not in self._ids]
        rate = group["lr"] * group["adamw_lr_ratio"]
        return {"params": mine, "lr": rate} | {k: group[k] for k in ("betas", "weight_decay", "eps")}

    def _set_up(self) -> None:
        self._ids = {id(p) for p in self._hidden}
        # Their own parameters are placeholders: `step` tells them what to work on. Muon looks for matrices here.
        self._muon = torch.optim.Muon(self._hidden or [torch.zeros(1, 1)])
        self._adamw = torch.optim.AdamW([torch.zeros(1)])

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_hidden": self._hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._set_up()


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon is made for: matrices, except embeddings' and the first and the last layer's.

    First and last are those in the order in which the model names its parameters. Convolutions count as layers but stay
    with AdamW, since `torch.optim.Muon` takes matrices alone; so do a norm's weights and whatever is not called a
    weight, such as learnt positions. Raises `ValueError` when nothing is left.
    """
    layers: list[tuple[str, nn.Parameter]] = []
    never: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2 and "weight" in name and not isinstance(module, _NORMS):
                layers.append((name, parameter))
                if isinstance(module, _EMBEDDINGS):
                    never.add(id(parameter))
    if layers:
        never |= {id(layers[0][1]), id(layers[-1][1])}
    hidden = {id(p): p for _, p in layers if p.ndim == 2 and id(p) not in never}
    if not hidden:
        raise ValueError(
            "muon needs a weight matrix between the first layer and the last; this model has none; try adamw"
        )
    return list(hidden.values())
