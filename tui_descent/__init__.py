"""tui-descent: see and steer gradient descent from a terminal.

`from tui_descent import watch` is the interface for your own training loop. Torch is imported only when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tui_descent.training.stop_run import StopRun as StopRun
    from tui_descent.training.watch.user_loop import watch
    from tui_descent.training.watch.watch import Watch

__version__ = "0.1.0"
__all__ = ["StopRun", "Watch", "__version__", "watch"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from tui_descent.training.stop_run import StopRun
        from tui_descent.training.watch.user_loop import watch
        from tui_descent.training.watch.watch import Watch

        return {"watch": watch, "Watch": Watch, "StopRun": StopRun}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
