"""Generated classification data: the table of a modular addition, and classes of very different size."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tui_descent.scenario.spec import ModularAdditionData, RareClassesData
from tui_descent.training.setup.data.batches import DataSet

HELD_OUT_PER_CLASS = 2


def modular_addition(spec: ModularAdditionData, *, seed: int) -> DataSet:
    """All pairs (a, b) with the class a + b mod p. Inputs are float32, (n, 2p): a and b, each one-hot.

    A share of the pairs, drawn from the seed, is for training, the others are held out (Power et al. 2022,
    arXiv 2201.02177).
    """
    p = spec.modulus
    x, y = table(p)
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(seed))
    n = int(p * p * spec.share)
    train, held_out = order[:n], order[n:]
    return DataSet(x=x[train], y=y[train], held_out_x=x[held_out], held_out_y=y[held_out], classes=p)


def table(p: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs, the one (a, b) in row a · p + b: inputs (p², 2p), classes (p²,)."""
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    return torch.cat([F.one_hot(a, p), F.one_hot(b, p)], dim=1).float(), (a + b) % p


def rare_classes(spec: RareClassesData, *, seed: int) -> DataSet:
    """The centres of the classes are drawn from N(0, 1), the samples from N(centre, noise²). Inputs: (n, inputs).

    Of each class as many samples are held out, so the held-out accuracy is the mean accuracy of all classes. The sizes
    of the classes are those of Kunstner et al. 2024, arXiv 2402.19449.
    """
    g = torch.Generator().manual_seed(seed)
    sizes = spec.class_sizes()
    centres = torch.randn(len(sizes), spec.inputs, generator=g)
    y = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    held_out_y = torch.arange(len(sizes)).repeat_interleave(HELD_OUT_PER_CLASS)
    x, held_out_x = (
        centres[classes] + spec.noise * torch.randn(len(classes), spec.inputs, generator=g)
        for classes in (y, held_out_y)
    )
    return DataSet(x=x, y=y, held_out_x=held_out_x, held_out_y=held_out_y, classes=len(sizes))
