"""The picture of classes of very different size: the loss of the common ones and of the rare ones."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from tui_descent.protocol.task_pictures import ClassesPicture, ClassGroup
from tui_descent.scenario.spec import RareClassesData
from tui_descent.training.setup.build import Setup


class ClassesPainter:
    """Makes the pictures of one run on rare classes. The loss is the cross-entropy, whatever the run minimises."""

    def __init__(self, setup: Setup) -> None:
        assert setup.batches is not None
        assert isinstance(setup.scenario.data, RareClassesData)
        self._setup, self._data = setup, setup.batches.data
        self._sizes = torch.tensor(setup.scenario.data.class_sizes())  # (classes,)

    def picture(self, columns: int, rows: int) -> ClassesPicture:
        """The picture, whatever the size of the screen. All samples are evaluated in one pass."""
        data = self._data
        outputs = self._setup.outputs(torch.cat([data.x, data.held_out_x])).float()  # (n, classes)
        losses = F.cross_entropy(outputs[: len(data.x)], data.y, reduction="none").cpu()
        answers = outputs[len(data.x) :]
        right = ((answers.argmax(dim=1) == data.held_out_y) & answers.isfinite().all(dim=1)).cpu()
        sizes, held_out_sizes = self._sizes[data.y.cpu()], self._sizes[data.held_out_y.cpu()]
        groups = tuple(
            ClassGroup(
                classes=int((self._sizes == size).sum()),
                samples=size,
                loss=losses[sizes == size].double().mean().item(),
                right=right[held_out_sizes == size].double().mean().item(),
            )
            for size in sorted(set(self._sizes.tolist()), reverse=True)
        )
        return ClassesPicture(groups=groups, guess=math.log(data.classes))
