"""One optimizer that applies Muon to the hidden weight matrices and AdamW to all other parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tui_descent.scenario.optimizers import MUON_ADAMW_RATIO

# Scales Muon's update by 0.2·√max(rows, columns). Its RMS is then about that of an AdamW update, so one learning rate
# suits both (Liu et al. 2025, arXiv 2502.16982).
UPDATE_SCALING = "match_rms_adamw"
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


class Muon(torch.optim.Optimizer):
    """Applies `torch.optim.Muon` to the parameters in `hidden`, and `torch.optim.AdamW` to all others.

    A parameter group may contain both kinds of parameters. Its `lr` is Muon's rate; AdamW's rate is `adamw_lr_ratio`
    times `lr`. The state of a hidden parameter is `momentum_buffer`. The state of the others is `step`, `exp_avg` and
    `exp_avg_sq`. Parameters added later use AdamW. Raises `ValueError` if a hidden parameter is not a matrix.
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
        self._create_parts()
        options = {"momentum": momentum, "betas": betas, "weight_decay": weight_decay, "eps": eps}
        super().__init__(params, {"lr": lr, "adamw_lr_ratio": adamw_lr_ratio, **options})

    @property
    def hidden(self) -> list[nn.Parameter]:
        """The parameters that Muon updates."""
        return self._hidden

    def is_hidden(self, parameter: Tensor) -> bool:
        """Whether Muon updates the parameter; otherwise AdamW does."""
        return id(parameter) in self._hidden_ids

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters: the hidden matrices by Muon, the others by AdamW."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Rebuilt at every step, since rates, groups and their parameters may change between two steps.
        self._muon.param_groups = [self._muon.defaults | self._muon_part(g) for g in self.param_groups]
        self._adamw.param_groups = [self._adamw.defaults | self._adamw_part(g) for g in self.param_groups]
        for part in (self._muon, self._adamw):
            part.state = self.state
            part.step()  # type: ignore[no-untyped-call]
        return loss

    def _muon_part(self, group: dict[str, Any]) -> dict[str, Any]:
        hidden = [p for p in group["params"] if id(p) in self._hidden_ids]
        return {"params": hidden, "adjust_lr_fn": UPDATE_SCALING} | {
            k: group[k] for k in ("lr", "momentum", "weight_decay")
        }

    def _adamw_part(self, group: dict[str, Any]) -> dict[str, Any]:
        others = [p for p in group["params"] if id(p) not in self._hidden_ids]
        rate = group["lr"] * group["adamw_lr_ratio"]
        return {"params": others, "lr": rate} | {k: group[k] for k in ("betas", "weight_decay", "eps")}

    def _create_parts(self) -> None:
        self._hidden_ids = {id(p) for p in self._hidden}
        # Created with placeholders; `step` sets their groups. torch's Muon raises here if a parameter is not a matrix.
        self._muon = torch.optim.Muon(self._hidden or [torch.zeros(1, 1)])
        self._adamw = torch.optim.AdamW([torch.zeros(1)])

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_hidden": self._hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._create_parts()


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon updates: matrices, except those of embeddings and of the first and the last layer.

    "First" and "last" refer to the order of the model's parameters. Convolutions count as layers but use AdamW, since
    `torch.optim.Muon` takes matrices only. Weights of norm layers, and parameters without "weight" in their name, such
    as learnt positions, use AdamW too. Raises `ValueError` if no matrix is left.
    """
    layers: list[tuple[str, nn.Parameter]] = []
    excluded: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2 and "weight" in name and not isinstance(module, _NORMS):
                layers.append((name, parameter))
                if isinstance(module, _EMBEDDINGS):
                    excluded.add(id(parameter))
    if layers:
        excluded |= {id(layers[0][1]), id(layers[-1][1])}
    hidden = {id(p): p for _, p in layers if p.ndim == 2 and id(p) not in excluded}
    if not hidden:
        raise ValueError(
            "muon needs a weight matrix between the first layer and the last; this model has none; try adamw"
        )
    return list(hidden.values())
