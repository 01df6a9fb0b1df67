"""The command line. Slow imports are inside the functions that need them."""

from __future__ import annotations

import tui_descent.import_path  # noqa: F401 - before all other imports

# isort: split
import sys

from tui_descent import interrupts

if sys.argv[0].endswith("tui-descent"):  # started as a command, not by a test
    interrupts.end_at_once()

# isort: split
import argparse
import os
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tui_descent import __version__, output, run_commands
from tui_descent.doctor import command as doctor_command
from tui_descent.output import on_a_terminal

if TYPE_CHECKING:
    import subprocess

    from _typeshed import SupportsWrite

    from tui_descent.dashboard.left import Left
    from tui_descent.protocol.launch import Launch
    from tui_descent.scenario.spec import Scenario

USAGE = 2
MOST_ROLLBACKS = 100
WITHIN_S = 20.0  # how long to wait for a keeper to end its run
COMMANDS = (
    "run",
    "resume",
    "race",
    "exec",
    "attach",
    "send",
    "stop",
    "presets",
    "check",
    "runs",
    "replay",
    "export",
    "doctor",
)
# A race has no undo and no snapshots; one that a dashboard starts notifies nobody.
RACE_SETTINGS: dict[str, Any] = {
    "undo_budget": "0",
    "snapshot_every": "off",
    "snapshot_size": None,
    "rollback": "0",
    "notify": None,
}
RUN_HELP = "the beginning of a run's id or name"
DESCRIPTION = """See and steer gradient descent from a terminal.

  tui-descent                    pick a preset
  tui-descent vanishing          start a preset and open the dashboard
  tui-descent my-run.toml        start your own scenario file"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `tui-descent`; returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0] not in COMMANDS and not args[0].startswith("-"):
        args.insert(0, "run")  # the first word is a NAME or FILE.toml
    if "stdout" in output.prepare():
        if "--json" in takewhile(lambda word: word != "--", args):
            return _usage("stdout is closed; --json prints to it")
        output.say("tui-descent: stdout is closed: results are not printed")
    try:
        code = _command(args)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as ending:  # from argparse
        code = ending.code if isinstance(ending.code, int) else USAGE
    except OSError as error:
        output.discard(sys.stdout)
        return _cannot_print(error)
    unwritten = output.flush()
    return code if unwritten is None else code or _cannot_print(unwritten)


def _cannot_print(error: OSError) -> int:
    if error.filename is not None:
        output.say(f"tui-descent: {error}")
    elif not isinstance(error, BrokenPipeError):  # no message if the reader of our pipe has exited, as `head` does
        output.say(f"tui-descent: cannot write to stdout: {error.strerror or error}")
    return 1


def _command(args: list[str]) -> int:
    if not args:
        return _gallery()
    parsed = _parser().parse_args(args)
    command: Callable[[argparse.Namespace], int] = parsed.command
    return command(parsed)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="tui-descent", description=DESCRIPTION)
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_run(commands)
    _add_race(commands)
    _add_exec(commands)
    _add_resume(commands)
    _add_live(commands)
    _add_presets(commands)
    check = commands.add_parser(
        "check",
        help="validate a scenario file",
        description="Validate a scenario file and print every error with its place.\n\n  tui-descent check my-run.toml",
    )
    check.add_argument("file", metavar="FILE.toml")
    check.set_defaults(command=_check)
    run_commands.add_commands(commands)
    doctor_command.add_command(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="start a preset or a scenario file (the word run may be omitted)",
        description="Start a run and open the dashboard on it.\n\n"
        "  tui-descent run vanishing\n"
        "  tui-descent run vanishing --demo\n"
        "  tui-descent run vanishing --headless --steps 460 --at 150:residual=on\n"
        "  tui-descent run my-run.toml --set data.batch_size=128 --device cuda",
    )
    _add_scenario_options(run)
    run.add_argument(
        "--at",
        metavar="STEP:KNOB=VALUE",
        action="append",
        default=[],
        help="change a knob before update STEP; send --help lists the knobs",
    )
    run.add_argument(
        "--demo", action="store_true", help="play the preset's demonstration: it presses keys and shows captions"
    )
    run.add_argument(
        "--curvature",
        action="store_true",
        help="measure the largest and smallest Hessian eigenvalue at the start, at the end and, as the budget allows, "
        'every 10 s or less often; --json prints {"event":"curvature",…}',
    )
    run.add_argument(
        "--range-test",
        metavar="STEP",
        action="append",
        default=[],
        help="run a learning-rate range test before update STEP, then restore the state; "
        '--json prints {"event":"range_test",…}',
    )
    _add_watch_options(run)
    _add_saving_options(run)
    run.set_defaults(command=_run)


def _add_scenario_options(parser: argparse.ArgumentParser) -> None:
    """What a run and a race have in common."""
    parser.add_argument("name", metavar="NAME|FILE.toml")
    parser.add_argument("--headless", action="store_true", help="no dashboard; print a progress line and a summary")
    parser.add_argument("--json", action="store_true", help="headless; print one JSON object per line on stdout")
    parser.add_argument("--steps", metavar="N", help="number of updates")
    parser.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument("--seed", metavar="S", help="seed for weights, data and batches")
    parser.add_argument("--pace", metavar="N|max", help="steps per second (default when headless: max)")
    parser.add_argument(
        "--set", metavar="PLACE=VALUE", action="append", default=[], help="override one value of the scenario"
    )
    parser.add_argument("--threads", metavar="N", help="CPU threads of the trainer; affects the last bits of results")
    parser.add_argument("--force", action="store_true", help="run even if there seems to be too little memory")


def _add_race(commands: Any) -> None:
    race = commands.add_parser(
        "race",
        help="race optimizers from the same start, on the same batches",
        description="Race optimizers from the same start, on the same batches. A lane has the scenario's rate for its "
        "optimizer,\nor the converted rate of the scenario's own optimizer, or the RATE that you give.\n\n"
        "  tui-descent race saddle\n"
        "  tui-descent race saddle --optimizers sgd,momentum,rmsprop,adam,adamw --headless\n"
        "  tui-descent race vanishing --optimizers sgd:0.1,sgd:1,adam:0.001 --json",
    )
    _add_scenario_options(race)
    race.add_argument(
        "--optimizers",
        metavar="NAME[:RATE],…",
        help="up to eight; the default is the scenario's race.optimizers, or sgd,momentum,rmsprop,adam",
    )
    race.add_argument("--runs-dir", metavar="DIR", help="parent folder: each run creates a folder of its own in it")
    _add_notify(race)
    race.set_defaults(command=_race, **RACE_SETTINGS)


def _add_exec(commands: Any) -> None:
    script = commands.add_parser(
        "exec",
        help="run your own script that uses watch(), and open the dashboard on it",
        description="Run your own script that uses watch(), and open the dashboard on it.\n\n"
        "  tui-descent exec -- python train.py --epochs 3",
    )
    script.add_argument("--headless", action="store_true", help="no dashboard; print a progress line and a summary")
    script.add_argument("--json", action="store_true", help="headless; print one JSON object per line on stdout")
    _add_watch_options(script)
    _add_saving_options(script)
    script.add_argument("argv", metavar="-- COMMAND", nargs="+")
    script.set_defaults(command=_exec)


def _add_resume(commands: Any) -> None:
    resume = commands.add_parser(
        "resume",
        help="go on with a run that has ended or was killed",
        description="Go on with a run that has ended or was killed, from its newest good snapshot, with the settings "
        "that it had.\nInterventions that were made after the snapshot are repeated at their steps. Without RUN, the "
        "newest run.\n\n"
        "  tui-descent resume vanishing\n"
        "  tui-descent resume vanishing --headless --steps 5000      to step 5,000 in all\n\n"
        "A script of exec is started again, in the folder in which it was started; it has to call run.resume().",
    )
    resume.add_argument("name", metavar="RUN", nargs="?", help="the beginning of the run's id or name")
    resume.add_argument(
        "--steps",
        metavar="N",
        help="how many steps the run shall have in all, with those that it has made already; by default as many as it "
        "was started with",
    )
    resume.add_argument("--headless", action="store_true", help="no dashboard; print a progress line and a summary")
    resume.add_argument("--json", action="store_true", help="headless; print one JSON object per line on stdout")
    resume.add_argument("--runs-dir", metavar="DIR", help="the folder of the runs")
    resume.set_defaults(command=_resume, undo_budget=None, snapshot_every=None, snapshot_size=None, rollback=None)


def _add_saving_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--snapshot-every",
        metavar="MINUTES",
        help="save the run on disk this often, so that resume can go on with it (default 5; off: never); also at a "
        "stop and at the end; or $TUI_DESCENT_SNAPSHOT_EVERY",
    )
    parser.add_argument(
        "--snapshot-size",
        metavar="SIZE",
        help="disk space for all snapshots of the run, as in 500MB (default: a tenth of the free space, at most 2GB); "
        "or $TUI_DESCENT_SNAPSHOT_SIZE",
    )
    parser.add_argument(
        "--rollback",
        metavar="N",
        help="when the loss or a gradient is not finite, go back to the last good state with half of the learning "
        "rate, at most N times (default 0)",
    )


def _add_live(commands: Any) -> None:
    """The commands for runs that are going on."""
    attach = commands.add_parser(
        "attach",
        help="open the dashboard on a run that is going on",
        description="Open the dashboard on a run that is going on. Several dashboards may show one run.\n\n"
        "  tui-descent attach\n  tui-descent attach vanishing --read-only",
    )
    attach.add_argument("run", metavar="RUN", nargs="?", help=f"{RUN_HELP}; by default the newest live run")
    attach.add_argument("--read-only", action="store_true", help="only look: no key changes the run")
    attach.add_argument("--ghost", metavar="RUN", help=run_commands.GHOST_HELP)
    attach.set_defaults(command=_attach)
    send = commands.add_parser(
        "send",
        help="steer a run that is going on, from a script",
        description="Send one command to a run and print its reply as JSON. The exit code is 1 if it is rejected.\n\n"
        "  tui-descent send vanishing residual=on\n  tui-descent send vanishing lr=*0.5 --dry-run\n"
        "  tui-descent send vanishing pause\n\n"
        "Knobs, as for --at; a value that is not allowed is answered with those that are:\n\n"
        "  lr=0.01  lr=*2  activation=gelu  activation@blocks.3=tanh  dropout=0.1\n"
        "  residual=on,way=gentle  norm=layer,where=pre  init=he  freeze@stem=on\n"
        "  optimizer=adam  momentum=0.9  betas=0.9/0.95  weight_decay=0.01  clip=1\n"
        "  schedule=cosine  batch_size=64  kick=0.1  pace=30",
    )
    send.add_argument("run", metavar="RUN", help=RUN_HELP)
    send.add_argument(
        "change",
        metavar="KNOB=VALUE",
        help="a knob, as for --at; or pause, resume, steps=N, undo, redo, mark[=TEXT], evaluate",
    )
    send.add_argument(
        "--dry-run",
        action="store_true",
        help="change nothing: only check the knob's name, its value, its target, and whether it is available now. "
        "Whether the net would still train with it is not tried",
    )
    send.set_defaults(command=_send)
    stop = commands.add_parser(
        "stop",
        help="stop a run that is going on",
        description="Stop a run after the step in progress, and wait until it has ended. A script then runs the code "
        "after\nits loop.\n\n  tui-descent stop vanishing",
    )
    stop.add_argument("run", metavar="RUN", help=RUN_HELP)
    stop.add_argument("--kill", action="store_true", help="end the process at once; nothing is saved")
    stop.set_defaults(command=_stop)
    for parser in (attach, send, stop):
        parser.add_argument("--runs-dir", metavar="DIR", help="parent folder of the runs")


def _add_watch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--watch-budget",
        metavar="SHARE",
        default="1%",
        help="the largest part of the run time that readings may take (default 1%%); at most ten readings per second",
    )
    parser.add_argument("--watch-every", metavar="N", help="take a reading at every Nth step, whatever it costs")
    parser.add_argument(
        "--undo-budget",
        metavar="SIZE",
        help="memory for the snapshots that the key u restores, as in 256MB (auto: a tenth of the device's free "
        "memory, at most 2GB); if one snapshot needs more, u restores only the knob's value; or "
        "$TUI_DESCENT_UNDO_BUDGET",
    )
    parser.add_argument("--runs-dir", metavar="DIR", help="parent folder: each run creates a folder of its own in it")
    _add_notify(parser)


def _add_notify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--notify",
        metavar="CMD",
        help="run CMD when the run ends, is held, diverges or has a new finding, as in --notify 'notify-send "
        "tui-descent'. Its last argument is a sentence; TUI_DESCENT_NOTIFY_EVENT (end, hold, divergence, finding), "
        "_RUN, _STEP, _LOSS and _TEXT are in its environment. No shell is used. Default: $TUI_DESCENT_NOTIFY",
    )


def _add_presets(commands: Any) -> None:
    from tui_descent.scenario.metrics import METRICS

    metrics = "\n".join(f"  {name:<20}{text}" for name, text in METRICS.items())
    presets = commands.add_parser(
        "presets",
        help="list the presets, or show one with its story, claims and TOML",
        description="List the presets, or show one with its story, claims and TOML.\n\n"
        "  tui-descent presets\n  tui-descent presets vanishing\n  tui-descent presets vanishing --toml > my-run.toml\n"
        "  tui-descent presets vanishing --verify --seeds 3",
        epilog=f"metrics for claims:\n{metrics}",
    )
    presets.add_argument("name", nargs="?", metavar="NAME")
    presets.add_argument(
        "--toml", action="store_true", help="print only this preset's file, as a start for your own scenario file"
    )
    presets.add_argument("--verify", action="store_true", help="check the claims of this preset, or of all presets")
    presets.add_argument(
        "--seeds", metavar="N", help="number of seeds to check the claims with (default 1)", default="1"
    )
    presets.set_defaults(command=_presets)


class _Parser(argparse.ArgumentParser):
    """A parser that keeps the line breaks of descriptions, in subcommands too."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **kwargs})

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse itself ignores errors of the stream

    def error(self, message: str) -> NoReturn:
        output.draw(self.format_usage())
        output.say(f"{self.prog}: error: {message}")
        raise SystemExit(USAGE)


class _Version(argparse.Action):
    """`--version`: the installed versions, read without importing the packages."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(nargs=0, help="versions of tui-descent, torch, textual, plotext and Python", **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        print(f"tui-descent {__version__}")
        for name in ("torch", "textual", "plotext"):
            try:
                print(f"{name} {version(name)}")
            except PackageNotFoundError:
                print(f"{name} not installed")
        print(f"Python {platform.python_version()}")
        parser.exit()


def _gallery(highlighted: str = "") -> int:
    """Let the user choose a preset to start or a run to open. `highlighted` is the preset that is selected at first."""
    if not on_a_terminal():
        return _print_presets()
    from tui_descent.dashboard.gallery import pick
    from tui_descent.paths import runs_folder

    output.draw_on_stdout()
    chosen = pick(highlighted)
    if chosen is None:
        return 0
    if chosen.startswith("run:"):
        from tui_descent.protocol.run_lock import is_held

        run = chosen.removeprefix("run:")
        return main(["attach" if is_held(runs_folder() / run) else "replay", run])
    return main(["run", chosen])


def _overrides(args: argparse.Namespace) -> list[str]:
    """The values of the scenario that options override, as `place=value`."""
    overrides = list(args.set)
    for option, place in (("steps", "run.steps"), ("seed", "run.seed"), ("threads", "run.threads")):
        if (value := getattr(args, option)) is not None:
            overrides.append(f"{place}={value}")
    if args.device is not None:
        overrides.append(f'run.device="{args.device}"')
    if args.pace is not None:
        overrides.append(f'run.pace="{args.pace}"' if args.pace == "max" else f"run.pace={args.pace}")
    return overrides


def _run(args: argparse.Namespace) -> int:
    from tui_descent.scenario import knobs, presets
    from tui_descent.scenario.toml import ScenarioError

    try:
        plan = tuple((at, knobs.text_of(command)) for at, command in map(knobs.parse_at, args.at))
        name, scenario = presets.find(args.name, overrides=_overrides(args))
        range_test_at = tuple(_step("--range-test", text) for text in args.range_test)
        budget, every = _watch_options(args)
    except ScenarioError as error:
        return _usage(*str(error).splitlines())
    except ValueError as error:
        return _usage(str(error))
    steps = scenario.run.steps
    beyond = [f"--at {at}:{text}" for at, text in plan if at >= steps]
    beyond += [f"--range-test {at}" for at in range_test_at if at >= steps]
    for option in beyond:
        output.say(f"tui-descent: {option} has no effect: the run's steps are 0 to {steps - 1:,}")
    if not args.force and (reason := _memory_refusal(scenario)) is not None:
        return _usage(f"{name} {reason}; make the net or the batches smaller, or use --force")
    if args.demo and not scenario.plan:
        return _usage(f"{name}: nothing to demonstrate: the scenario has no [[plan]]")
    headless = _headless(args)
    return _launch(
        args,
        name=name,
        headless=headless,
        scenario=scenario,
        plan=tuple(entry for entry in plan if entry[0] < steps),
        pace=_pace(scenario, args, headless=headless),
        watch_budget=budget,
        watch_every=every,
        curvature=args.curvature,
        curvature_at=(0, steps) if args.curvature else (),
        range_test_at=tuple(at for at in range_test_at if at < steps),
        force=args.force,
        demo=args.demo,
    )


def _pace(scenario: Scenario, args: argparse.Namespace, *, headless: bool) -> float | None:
    """The pace in steps per second. A headless run has one only if it was asked for."""
    wanted = not headless or args.pace is not None
    return float(scenario.run.pace) if wanted and scenario.run.pace != "max" else None


def _race(args: argparse.Namespace) -> int:
    from tui_descent.scenario import presets
    from tui_descent.scenario.toml import ScenarioError

    try:
        name, scenario = presets.find(args.name, overrides=_overrides(args))
    except ScenarioError as error:
        return _usage(*str(error).splitlines())
    chosen = scenario.race.optimizers
    if args.optimizers is not None:
        chosen = tuple(word.strip() for word in args.optimizers.split(","))
    headless = _headless(args)
    return _start_race(args, name, scenario, chosen, headless=headless)


def _start_race(
    args: argparse.Namespace, name: str, scenario: Scenario, chosen: tuple[str, ...], *, headless: bool
) -> int:
    from tui_descent.scenario.race import lanes_of, scenario_of
    from tui_descent.scenario.toml import ScenarioError, from_table, to_table

    try:
        lanes = {lane.name: scenario_of(scenario, lane) for lane in lanes_of(scenario.optimizer, chosen)}
        for lane, one in lanes.items():
            from_table(to_table(one), source=f"race: {lane}", shortened=True)
    except ScenarioError as error:
        return _usage(*str(error).splitlines())
    except ValueError as error:
        return _usage(f"--optimizers: {error}")
    if not args.force and (reason := _memory_refusal(*lanes.values())) is not None:
        return _usage(f"{name} {reason}; race fewer optimizers, make the net smaller, or use --force")
    return _launch(
        args,
        name=name,
        headless=headless,
        scenario=scenario,
        race=chosen,
        pace=_pace(scenario, args, headless=headless),
        force=args.force,
    )


def _memory_refusal(*lanes: Scenario) -> str | None:
    """Why the run, or the race with these lanes, does not fit into memory.

    The weights are made on the host, so they must fit there. What must fit on a GPU is checked by the trainer, because
    this process has no torch.
    """
    from tui_descent.free_memory import free_bytes
    from tui_descent.scenario.memory import memory_needed_by, refusal

    device = lanes[0].run.device
    on_gpu = device.startswith("cuda") or (device == "auto" and Path("/dev/nvidia0").exists())
    need = memory_needed_by(lanes)
    return refusal(need.of_weights() if on_gpu else need, free_bytes())


def _step(option: str, text: str) -> int:
    if (step := _whole(text)) is None:
        raise ValueError(f"{option} {text[:40]}: allowed: a step number ≥ 0")
    return step


def _whole(text: str) -> int | None:
    """A whole number of at most 15 digits; None for any other text."""
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else None


def _exec(args: argparse.Namespace) -> int:
    try:
        budget, every = _watch_options(args)
    except ValueError as error:
        return _usage(str(error))
    if shutil.which(args.argv[0]) is None:
        return _usage(f"{args.argv[0]}: command not found; example: tui-descent exec -- python train.py")
    name = next((Path(word).stem for word in args.argv if word.endswith(".py")), Path(args.argv[0]).name)
    headless = _headless(args)
    return _launch(
        args,
        name=name,
        headless=headless,
        command=tuple(args.argv),
        terminal_size=_script_terminal_size(headless=headless),
        working_folder=os.getcwd(),
        watch_budget=budget,
        watch_every=every,
    )


def _script_terminal_size(*, headless: bool) -> tuple[int, int]:
    """Columns and rows for the script's own terminal: those of the output panel. In a headless run, those of this
    terminal.
    """
    from tui_descent.dashboard.terminal_size import script_size

    for stream in (sys.__stdout__, sys.__stderr__):
        try:
            columns, rows = os.get_terminal_size(stream.fileno())  # type: ignore[union-attr]
        except (AttributeError, ValueError, OSError):
            continue
        if columns and rows:
            return (columns, rows) if headless else script_size(columns, rows)
    return 80, 24


def _launch(
    args: argparse.Namespace, *, name: str, headless: bool, scenario: Scenario | None = None, **settings: Any
) -> int:
    """Start a run with these settings, headless or with a dashboard."""
    from tui_descent.protocol.launch import Launch, snapshot_bytes, snapshot_every_s, undo_budget
    from tui_descent.scenario.toml import to_table

    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # the file's name may not be UTF-8
    try:
        budget = undo_budget(args.undo_budget)
        every_s, size = snapshot_every_s(args.snapshot_every), snapshot_bytes(args.snapshot_size)
        rollback, notify = _rollback(args), _notify_command(args.notify)
    except ValueError as error:
        return _usage(str(error))
    wanted = Launch(
        run="",
        name=name,
        folder="",
        socket=None,
        scenario=None if scenario is None else to_table(scenario),
        attended=not headless,
        undo_budget=budget,
        snapshot_every_s=every_s,
        snapshot_bytes=size,
        rollback=rollback,
        notify=notify,
        **settings,
    )
    return _start(wanted, args.runs_dir, json=headless and args.json)


def _start(wanted: Launch, runs_dir: str | None, *, json: bool = False) -> int:
    """Create the run's folder, then run headless or start a keeper and open the dashboard.

    `wanted` has the settings of the run; its id, its folder and its socket are chosen here.
    """
    from msgspec.structs import replace

    from tui_descent import paths
    from tui_descent.protocol.channel import ChannelError

    if not wanted.attended:
        from tui_descent import headless as runner
    folder = None
    try:
        run, folder = paths.new_run(wanted.name, runs_dir)
        launch = replace(wanted, run=run, folder=str(folder), socket=str(paths.socket_path(run)), resume=None)
        launch.write()
    except (ChannelError, OSError, ValueError) as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, UnicodeEncodeError):
            return _usage(f"{error.object[:80]!a}: not valid UTF-8; rename it")
        if isinstance(error, OSError):
            return _usage(f"cannot write {error.filename}: {error.strerror}")
        return _usage(str(error))
    if not launch.attended:
        return runner.run(launch, json=json)
    return _follow(_dashboard(launch), launch, runs_dir)


def _follow(left: Left, launch: Launch, runs_dir: str | None) -> int:
    """Do what the user wants after the dashboard of a run. Returns the exit code."""
    if left.then == "restart":
        return _start(launch, runs_dir)
    if left.then == "race" and launch.scenario is not None:
        from tui_descent.scenario.toml import from_table

        scenario = from_table(launch.scenario, source="launch", shortened=True)
        args = argparse.Namespace(runs_dir=runs_dir, force=launch.force, json=False, pace=None, **RACE_SETTINGS)
        return _start_race(args, launch.name, scenario, scenario.race.optimizers, headless=False)
    return _gallery(launch.name) if left.then == "gallery" else left.code


def _rollback(args: argparse.Namespace) -> int:
    if args.rollback is None:
        return 0
    if (count := _whole(args.rollback)) is None or count > MOST_ROLLBACKS:
        raise ValueError(f"--rollback {args.rollback[:40]}: allowed: a whole number from 0 to {MOST_ROLLBACKS}")
    return count


def _resume(args: argparse.Namespace) -> int:
    from tui_descent.protocol.channel import ChannelError
    from tui_descent.resume import CannotResumeError, how_to_start, prepare, recorded
    from tui_descent.run_list import RunNotFoundError

    headless = _headless(args)
    try:
        steps = None
        if args.steps is not None and not (steps := _whole(args.steps)):
            return _usage(f"--steps {args.steps[:40]}: allowed: a whole number ≥ 1, counted from the run's start")
        launch = recorded(args.name, args.runs_dir)
        if steps is not None and launch.scenario is None:
            return _usage("--steps: a script decides itself how many steps it makes")
        if launch.working_folder:
            os.chdir(launch.working_folder)  # the script is started from here
        if launch.scenario is None and launch.command is None:
            return _usage(f"{launch.run} goes on when its script is started again: {how_to_start(launch)}")
        launch = prepare(launch, attended=not headless, steps=steps)
        if headless:
            from tui_descent import headless as runner

            return runner.run(launch, json=args.json)
    except (CannotResumeError, RunNotFoundError, ChannelError, ValueError) as error:
        return _usage(str(error))
    except OSError as error:
        return _usage(f"{error.filename}: {error.strerror}")
    return _follow(_dashboard(launch), launch, args.runs_dir)


def _dashboard(launch: Launch) -> Left:
    """Start a keeper and open the dashboard. An error before that is reported in one line.

    If the user has not stopped the run, it goes on without this process.
    """
    from tui_descent import live_runs
    from tui_descent.dashboard.left import Left
    from tui_descent.protocol.channel import ChannelError, listen
    from tui_descent.protocol.exit_status import describe_exit
    from tui_descent.protocol.launch import KEEPER_LOG_FILE, LOG_FILE, start_keeper
    from tui_descent.protocol.run_lock import is_held
    from tui_descent.telemetry.script_output import last_lines

    assert launch.socket is not None
    output.draw_on_stdout()
    socket = Path(launch.socket)
    keeper = None
    try:
        with interrupts.deferred():
            # Opened here, so that a refused folder is found now. The keeper inherits it.
            with listen(socket) as listener:
                keeper = start_keeper(launch, listener=listener)  # the keeper starts while the dashboard is imported
            from tui_descent.dashboard.app import run_dashboard
    except (ChannelError, OSError) as error:
        return Left(_not_started(launch, str(error)))
    except SystemExit:  # a signal
        if keeper is not None:
            keeper.terminate()
            _end_keeper(launch, keeper)
        raise
    if keeper.poll() is not None:
        why = last_lines(launch.path / KEEPER_LOG_FILE, 1) or (describe_exit(keeper.returncode),)
        socket.unlink(missing_ok=True)
        return Left(_not_started(launch, f"the run's keeper ended while it was starting: {why[0]}"))
    left = run_dashboard(
        socket,
        name=launch.name,
        log_path=launch.path / LOG_FILE,
        script=launch.command is not None,
        scenario=launch.scenario,
        keeper_gone=lambda: keeper.poll() is not None,
        run_lives=lambda: is_held(launch.path),
        come_back=lambda: live_runs.come_back(launch),
    )
    if not left.run_goes_on:
        _end_keeper(launch, keeper)
    return left


def _attach(args: argparse.Namespace) -> int:
    from tui_descent import live_runs
    from tui_descent.protocol.channel import ChannelError
    from tui_descent.protocol.launch import LOG_FILE
    from tui_descent.protocol.run_lock import is_held
    from tui_descent.run_actions import compared_run
    from tui_descent.run_list import RunNotFoundError
    from tui_descent.telemetry.record import RecordError

    if not on_a_terminal():
        return _usage("attach needs a terminal; without one, use tui-descent send or tui-descent stop")
    try:
        launch = live_runs.find_live(args.run, args.runs_dir)
        compared = None if args.ghost is None else compared_run(args.ghost, args.runs_dir)
    except (RunNotFoundError, ChannelError, OSError, RecordError) as error:
        return _usage(str(error))
    if launch.socket is None:
        return _usage(f"{launch.run} has no socket, so nobody can attach to it")
    output.draw_on_stdout()
    with interrupts.deferred():
        from tui_descent.dashboard.app import run_dashboard
    left = run_dashboard(
        Path(launch.socket),
        name=launch.name,
        log_path=None if launch.has_own_terminal else launch.path / LOG_FILE,
        script=launch.scenario is None,
        scenario=launch.scenario,
        keeper_gone=lambda: not is_held(launch.path),
        run_lives=lambda: is_held(launch.path),
        read_only=args.read_only,
        compared=compared,
        come_back=lambda: live_runs.come_back(launch),
    )
    if not left.run_goes_on:
        live_runs.await_end(launch)
    return _follow(left, launch, args.runs_dir)


def _send(args: argparse.Namespace) -> int:
    from tui_descent import live_runs

    return _with_live_run(args, lambda launch: live_runs.send(launch, args.change, dry_run=args.dry_run))


def _stop(args: argparse.Namespace) -> int:
    from tui_descent import live_runs

    return _with_live_run(args, lambda launch: live_runs.stop(launch, kill=args.kill))


def _with_live_run(args: argparse.Namespace, act: Callable[[Launch], int]) -> int:
    from tui_descent import live_runs
    from tui_descent.client import ClientError
    from tui_descent.protocol.channel import ChannelError
    from tui_descent.run_list import RunNotFoundError

    try:
        launch = live_runs.find_live(args.run, args.runs_dir)
        return act(launch)
    except ClientError as error:
        output.say(f"tui-descent: {launch.run}: {error}")
        return 1
    except (RunNotFoundError, ChannelError, ValueError) as error:
        return _usage(str(error))


def _end_keeper(launch: Launch, keeper: subprocess.Popen[bytes]) -> None:
    """Wait for a keeper that ends its run. After this no process is left behind, unless the keeper hangs."""
    from subprocess import TimeoutExpired

    from tui_descent import live_runs

    if keeper.poll() is None:
        keeper.send_signal(signal.SIGCONT)  # it may have been suspended
    try:
        keeper.wait(WITHIN_S)
        live_runs.await_end(launch)  # another keeper may have replaced it
        return
    except TimeoutExpired:
        keeper.terminate()
    try:
        keeper.wait(2)
    except TimeoutExpired:
        keeper.kill()
        output.say("tui-descent: the run's keeper did not respond; it was killed")
        output.say(f"tui-descent: if the run goes on, end it with: tui-descent stop {launch.run}")


def _not_started(launch: Launch, why: str) -> int:
    if launch.resume is None:
        shutil.rmtree(launch.path, ignore_errors=True)
    return _usage(why)


def _presets(args: argparse.Namespace) -> int:
    from tui_descent.scenario import presets
    from tui_descent.scenario.toml import ScenarioError

    try:
        if args.verify:
            from tui_descent.verify import verify

            seeds = _whole(args.seeds)
            if not seeds:
                return _usage(f"--seeds {args.seeds[:40]}: allowed: a whole number ≥ 1")
            return verify([args.name] if args.name else presets.names(), seeds=seeds)
        if args.name is None:
            return _usage("--toml needs the name of a preset") if args.toml else _print_presets()
        if args.toml:
            print(presets.path_of(args.name).read_text(encoding="utf-8"), end="")
            return 0
        _, scenario = presets.find(args.name)
        _print_preset(scenario, presets.path_of(args.name))
    except ScenarioError as error:
        return _usage(*str(error).splitlines())
    return 0


def _print_presets() -> int:
    from tui_descent.scenario import presets

    for name in presets.names():
        _, scenario = presets.find(name)
        print(f"{name:<20}{scenario.theme:<24}{scenario.title}")
    return 0


def _print_preset(scenario: Scenario, path: Path) -> None:
    from tui_descent.scenario.claims import claim_sentence

    print(f"{scenario.title}\n{scenario.theme}\n\n{scenario.story.strip()}\n")
    if scenario.remedy:
        print(f"remedy: {', or '.join(scenario.remedy)}")
    for claim in scenario.claim:
        print(f"claims: {claim_sentence(claim)}")
    if scenario.cause_off:
        print(f"without its cause ({', '.join(scenario.cause_off)}) at least one claim fails")
    if scenario.sources:
        print(f"sources: {'; '.join(scenario.sources)}")
    print(f"\n# {path.name}\n{path.read_text(encoding='utf-8').strip()}")


def _check(args: argparse.Namespace) -> int:
    from tui_descent.scenario.toml import ScenarioError, read
    from tui_descent.scenario.validate import escape_controls

    try:
        scenario = read(Path(args.file))
    except ScenarioError as error:
        output.say(*str(error).splitlines())
        return USAGE
    print(escape_controls(f"{args.file}: valid scenario: {scenario.title}"))
    return 0


def _notify_command(text: str | None) -> tuple[str, ...]:
    """The words of `--notify`. Raises `ValueError`, also if there is no such command."""
    if text is None:
        return ()
    from tui_descent.keeper.notifier import words_of

    words = words_of(text)
    if shutil.which(words[0]) is None:
        raise ValueError(f"--notify {words[0][:60]}: command not found")
    return words


def _watch_options(args: argparse.Namespace) -> tuple[float, int | None]:
    """The values of `--watch-budget` (`1%` and `0.01` both give 0.01) and `--watch-every`. Raises `ValueError`."""
    text = args.watch_budget
    try:
        budget = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        budget = -1.0
    if not 0 <= budget <= 1:
        raise ValueError(f"--watch-budget {text[:40]}: allowed: 0 to 100%")
    if args.watch_every is None:
        return budget, None
    every = _whole(args.watch_every)
    if not every:
        raise ValueError(f"--watch-every {args.watch_every[:40]}: allowed: a whole number ≥ 1")
    return budget, every


def _headless(args: argparse.Namespace) -> bool:
    if args.headless or args.json:
        return True
    if not on_a_terminal():
        output.say("tui-descent: no terminal; running headless")
        return True
    return False


def _usage(*lines: str) -> int:
    output.say(*(f"tui-descent: {line}" for line in lines))
    return USAGE
