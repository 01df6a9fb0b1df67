"""The picture of a modular addition: the table of all sums, and which of them the net gets right."""

from __future__ import annotations

import torch

from tui_descent.protocol.task_pictures import AdditionPicture
from tui_descent.scenario.spec import ModularAdditionData
from tui_descent.training.setup.build import Setup
from tui_descent.training.setup.data.generated import table


class AdditionPainter:
    """Makes the pictures of one run on a modular addition."""

    def __init__(self, setup: Setup) -> None:
        assert setup.batches is not None
        assert isinstance(setup.scenario.data, ModularAdditionData)
        data = setup.batches.data
        self._setup, self._modulus = setup, setup.scenario.data.modulus
        x, y = table(self._modulus)
        self._x, self._y = x.to(data.x), y.to(data.y.device)  # (modulus², 2 · modulus), (modulus²,)
        a, b = data.held_out_x.view(-1, 2, self._modulus).argmax(dim=2).T
        self._held_out = torch.zeros(len(y), dtype=torch.bool, device=data.y.device)  # (modulus²,)
        self._held_out[a * self._modulus + b] = True

    def picture(self, columns: int, rows: int) -> AdditionPicture:
        """The picture, whatever the size of the screen. The whole table is evaluated in one pass."""
        outputs = self._setup.outputs(self._x)  # (modulus², modulus)
        right = (outputs.argmax(dim=1) == self._y) & outputs.isfinite().all(dim=1)
        held_out = self._held_out
        counts = torch.stack([(~held_out).sum(), (right & ~held_out).sum(), held_out.sum(), (right & held_out).sum()])
        trained, trained_right, held_out_count, held_out_right = counts.tolist()
        return AdditionPicture(
            modulus=self._modulus,
            cells=bytes((held_out.int() + 2 * right.int()).tolist()),
            trained=trained,
            trained_right=trained_right,
            held_out=held_out_count,
            held_out_right=held_out_right,
        )
