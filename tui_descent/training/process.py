"""The trainer process of a scenario: `python -m tui_descent.training.process FOLDER`.

It imports torch and reports an error if that fails; `scenario_run.py` does the rest.
"""

from __future__ import annotations

import gc
import importlib
import sys
import traceback

from tui_descent.protocol.events import RunEnded
from tui_descent.training.keeper_link import KeeperLink


def main() -> int:
    """Import torch and train; returns the exit code."""
    gc.disable()  # what is imported now stays to the end; looking for garbage in it would take a third of the time
    try:
        from tui_descent.training import scenario_run

        importlib.import_module("torch._dynamo")  # the first update would do it, with all the garbage collections
    except Exception as error:  # noqa: BLE001 - a broken torch may raise anything
        traceback.print_exc()
        link = KeeperLink.inherited()
        if link is not None:
            link.emit(RunEnded(status="failed", step=0, reason=_why(error)))
            link.close()
        return 1
    gc.freeze()
    gc.enable()
    return scenario_run.main()


def _why(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}{f': {lines[0][:300]}' if lines else ''}"
    return f"torch could not be imported: {what}. Try python -c 'import torch'"


if __name__ == "__main__":
    sys.exit(main())
