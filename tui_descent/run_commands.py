"""The options of the commands on recorded runs. `run_actions.py` carries them out; it is imported when it is needed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

FORMATS = ("csv", "jsonl", "tensorboard", "scenario", "python")
GHOST_HELP = "draw the loss of this recorded run too"


def add_commands(commands: Any) -> None:
    """Add the commands to the parser."""
    _add_runs(commands)
    replay = commands.add_parser(
        "replay",
        help="open the dashboard over a recorded run, with a time cursor",
        description="Open the dashboard over a recorded run, with a time cursor. RUN is the beginning of a run's id or "
        "name;\nwithout it, the newest recorded run is shown. ← and → move the cursor, space plays.\n\n"
        "  tui-descent replay vanishing",
    )
    replay.add_argument("name", metavar="RUN", nargs="?")
    replay.add_argument("--ghost", metavar="RUN", help=GHOST_HELP)
    replay.add_argument("--runs-dir", metavar="DIR", help="the folder of the runs")
    replay.set_defaults(command=_later("replay"))
    export = commands.add_parser(
        "export",
        help="write a recorded run in another format",
        description="Write a recorded run in another format. Without --out it is printed, except\n"
        "for tensorboard.\n\n"
        "  scenario   a scenario file with the run's interventions as its plan; headless it\n"
        "             gives the same losses\n"
        "  python     a plain PyTorch script of the run; it needs torch alone and gives the\n"
        "             same losses; a run whose net was changed cannot be written so:\n"
        "             use scenario\n\n"
        "  tui-descent export vanishing --to csv --out losses.csv\n"
        "  tui-descent export vanishing --to jsonl | jq 'select(.event == \"reading\")'\n"
        "  tui-descent export vanishing --to tensorboard --out logs/vanishing\n"
        "  tui-descent export vanishing --to scenario --out again.toml\n"
        "  tui-descent export plateau --to python --out plateau.py",
    )
    export.add_argument("name", metavar="RUN", help="the beginning of the run's id or name, as `runs` shows them")
    export.add_argument("--to", metavar="FORMAT", choices=FORMATS, required=True, help=", ".join(FORMATS))
    export.add_argument("--out", metavar="PATH", help="the file to write; for tensorboard a folder")
    export.add_argument("--runs-dir", metavar="DIR", help="the folder of the runs")
    export.set_defaults(command=_later("export"))


def _add_runs(commands: Any) -> None:
    runs = commands.add_parser(
        "runs",
        help="list the runs on this machine, compare two, or remove some",
        description="List the runs on this machine, compare two, or remove some. RUN is the beginning of a run's id or "
        "name.\n"
        "`train loss` is the training loss, an average over the last steps, as in the dashboard;\n"
        "`held-out` is the newest loss on held-out data. With --json they are train_loss and\n"
        "held_out_loss; loss is the last one reported: of the last step, or after the end the\n"
        "one evaluated then.\n\n"
        "  tui-descent runs\n"
        "  tui-descent runs --json\n"
        "  tui-descent runs compare vanishing-2026 healthy   the parameters that differ, and the results\n"
        "  tui-descent runs rm vanishing-20261130-120000-1a2b     the whole name\n"
        "  tui-descent runs prune --keep 20                  remove all but the newest 20; live runs always stay",
    )
    runs.add_argument("--json", action="store_true", help="print one JSON object per line on stdout")
    runs.add_argument("--runs-dir", metavar="DIR", help="the folder of the runs")
    runs.set_defaults(command=_later("print_runs"))
    actions = runs.add_subparsers(metavar="ACTION", title="actions")
    remove = actions.add_parser("rm", help="remove runs", description="Remove runs with all that was recorded.")
    remove.add_argument("names", metavar="RUN", nargs="+")
    remove.set_defaults(command=_later("remove"))
    prune = actions.add_parser(
        "prune", help="remove all but the newest runs", description="Remove all but the newest runs."
    )
    prune.add_argument("--keep", metavar="N", required=True, help="how many ended runs to keep; live runs always stay")
    prune.set_defaults(command=_later("prune"))
    compare = actions.add_parser(
        "compare", help="show what differs between two runs", description="Show what differs between two runs."
    )
    compare.add_argument("names", metavar="RUN", nargs=2)
    compare.set_defaults(command=_later("compare"))
    for action in (remove, prune, compare):
        action.add_argument("--runs-dir", metavar="DIR", default=argparse.SUPPRESS, help="the folder of the runs")


def _later(action: str) -> Callable[[argparse.Namespace], int]:
    """The function with this name in `run_actions.py`."""

    def command(args: argparse.Namespace) -> int:
        from tui_descent import run_actions

        carry_out: Callable[[argparse.Namespace], int] = getattr(run_actions, action)
        return carry_out(args)

    return command
