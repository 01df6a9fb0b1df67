"""The options of `tui-descent doctor`. The checks are imported when the command runs."""

from __future__ import annotations

import argparse
from typing import Any


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    doctor = commands.add_parser(
        "doctor",
        help="check terminal, torch, devices and folders: what works, what does not, what to do",
        description="Check the terminal, torch, its devices, the folders of runs, and what happens at\n"
        "a logout. The exit code is 1 if tui-descent cannot be used here.\n\n"
        "  tui-descent doctor\n"
        "  tui-descent doctor --json | jq 'select(.status != \"ok\")'",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object per check on stdout")
    doctor.add_argument("--runs-dir", metavar="DIR", help="the folder of the runs")
    doctor.set_defaults(command=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from tui_descent.doctor import report

    return report.run(args)
