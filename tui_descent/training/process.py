"""The trainer process of a scenario: `python -m tui_descent.training.process FOLDER`.

It imports torch and reports an error if that fails; `scenario_run.py` does the rest.
"""

from __future__ import annotations

import sys
import traceback

from tui_descent.protocol.events import RunEnded
from tui_descent.training.keeper_link import KeeperLink


def main() -> int:
    """Import torch and train; returns the exit code."""
    try:
        from tui_descent.training import scenario_run
    except Exception as error:  # noqa: BLE001 - a broken torch may raise anything
        traceback.print_exc()
        link = KeeperLink.inherited()
        if link is not None:
            link.emit(RunEnded(status="failed", step=0, reason=_why(error)))
            link.close()
        return 1
    return scenario_run.main()


def _why(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}{f': {lines[0][:300]}' if lines else ''}"
    return f"torch could not be imported: {what}. Try python -c 'import torch'"


if __name__ == "__main__":
    sys.exit(main())
