"""tui-descent: see and steer gradient descent from a terminal.

`from tui_descent import watch` is the interface for your own training loop. Torch is imported only when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tui_descent.training.own import watch
    from tui_descent.training.stop import StopRun as StopRun
    from tui_descent.training.watch import Watch

__version__ = "0.1.0"
__all__ = ["StopRun", "Watch", "__version__", "watch"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from tui_descent.training import own, stop, watch

        return {"watch": own.watch, "Watch": watch.Watch, "StopRun": stop.StopRun}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
