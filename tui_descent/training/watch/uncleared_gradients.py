"""Notices that the gradient of the last update is still there when the next backward pass adds to it, and how much of a
gradient is left when the optimizer gets it.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tui_descent.instruments.deferred import is_asynchronous
from tui_descent.instruments.failures import Failures
from tui_descent.instruments.module_hooks import Args, ModuleHooks, plain
from tui_descent.instruments.net_structure import WatchedLayer

PART = "the check for uncleared gradients"
MOST_FRAMES = 20  # between the step of a GradScaler and our hook


class UnclearedGradients:
    """Follows the gradient of one weight from update to update. Call `attach` before the forward pass. When the
    weight's module is called, a hook is put on the weight. `before_update` removes it, so nothing remains on the weight
    between two steps. Autograd calls the hook each time it has added to `.grad`. The gradient is uncleared if `.grad`
    is still the tensor of the last update, and only these additions have written to it. `in_a_row` is the number of
    updates in a row for which this was true.

    `left` is the norm of the gradient that the optimizer gets over the norm that the backward pass has left, which
    clipping makes smaller; None if that is not known: on a GPU, and under a GradScaler, which scales the gradients.
    """

    def __init__(self, watched: WatchedLayer, failures: Failures) -> None:
        self.name = watched.layer.name
        self.in_a_row = 0
        self.left: float | None = None
        self._measures = not is_asynchronous(watched.weight.device)
        self._norm = 0.0  # of the gradient after the backward pass
        self._weight, self._failures = watched.weight, failures
        self._hooks = ModuleHooks(failures)
        self._hooks.on_input(watched.module, self._called, PART)
        self._handle: RemovableHandle | None = None
        self._kept: tuple[int, int] | None = None  # address and version of the gradient that was used last
        self._fired, self._cleared = 0, False

    def attach(self) -> None:
        """Listen during the coming step."""
        self.detach()  # the last update may have been skipped
        self._fired, self._cleared, self._norm = 0, False, 0.0
        self._hooks.attach()

    def detach(self) -> None:
        """Remove the hooks."""
        self._hooks.detach()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            if not self._weight._post_accumulate_grad_hooks:  # torch leaves an empty dict
                self._weight._post_accumulate_grad_hooks = None  # type: ignore[assignment]

    def before_update(self) -> None:
        """Called when the optimizer is about to use the gradient."""
        self.detach()
        if self._kept is not None:
            self.in_a_row = self.in_a_row + 1 if self._fired and not self._cleared else 0
        self._kept = _identity(self._weight)
        norm = _norm(self._weight) if self._measures and self._norm and not _is_scaled() else None
        self.left = None if norm is None else norm / self._norm

    def _called(self, args: Args) -> None:
        if self._handle is None:
            self._handle = self._weight.register_post_accumulate_grad_hook(self._added)  # type: ignore[no-untyped-call]

    def _added(self, weight: Tensor) -> None:
        """Called when autograd has added a gradient to `.grad`."""
        try:
            self._fired += 1
            now, before = _identity(self._weight), self._kept
            if now is None or before is None or now != (before[0], before[1] + 1):
                self._cleared = True
            self._kept = now
            if self._measures:
                self._norm = _norm(weight) or 0.0
        except Exception as error:  # noqa: BLE001 - it must not end the user's training
            self._cleared = True
            self._failures.add(PART, error)


def can_be_followed(weight: nn.Parameter) -> bool:
    """Whether the gradient of a weight is an ordinary tensor."""
    grad: Any = weight.grad
    return grad is not None and plain(grad) is not None


def _norm(weight: Tensor) -> float | None:
    grad = None if weight.grad is None else plain(weight.grad)
    return None if grad is None else float(grad.norm())


def _is_scaled() -> bool:
    """Whether a GradScaler makes the optimizer's step. It has divided the gradients by its scale."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(MOST_FRAMES):
        if frame is None:
            return False
        if frame.f_code.co_filename.endswith("grad_scaler.py"):
            return True
        frame = frame.f_back
    return False


def _identity(weight: nn.Parameter) -> tuple[int, int] | None:
    grad = weight.grad
    return None if grad is None or plain(grad) is None else (grad.data_ptr(), grad._version)
