"""Runs all checks and prints them, as text or as JSON."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable, Iterator

import msgspec

from tui_descent.doctor import folders, session, terminal, torch_install
from tui_descent.doctor.checks import Check
from tui_descent.scenario.validate import escape_controls


def run(args: argparse.Namespace) -> int:
    """Print what works and what does not. Returns 0 if the program can be used, otherwise 1."""
    bad, notes, first = 0, 0, True
    for area, checks in areas(args.runs_dir):
        if not args.json:
            print(area)
        for check in checks:
            bad, notes = bad + (check.status == "bad"), notes + (check.status == "note")
            if args.json:
                head = {"v": 1} if first else {}
                print(json.dumps(head | {"area": area} | msgspec.to_builtins(check)), flush=True)
            else:
                print(*lines(check), sep="\n", flush=True)
            first = False
    if not args.json:
        print(summary(bad, notes))
    return 1 if bad else 0


def areas(runs_dir: str | None) -> Iterator[tuple[str, Iterable[Check]]]:
    """The checks by area. Each is made when it is asked for, so that the quick ones are shown at once."""
    yield "terminal", terminal.checks()
    yield "session", session.checks()
    yield "folders", folders.checks(runs_dir)
    yield "torch", torch_install.checks()


def lines(check: Check, width: int = 80) -> list[str]:
    """The lines of one check: its state, its name, what was found; below it, what to do."""
    mark = "BAD" if check.status == "bad" else check.status
    head = f"  {mark:<6}{check.name:<18}"
    texts = [escape_controls(text) for text in (check.found, check.advice) if text]
    wrapped = [
        line
        for text in texts
        for line in textwrap.wrap(text, width - len(head), break_long_words=False, break_on_hyphens=False)
    ]
    if check.command:  # never wrapped, so that it can be copied
        wrapped.append(f"  {escape_controls(check.command)}")
    return [f"{head if not n else ' ' * len(head)}{line}" for n, line in enumerate(wrapped)]


def summary(bad: int, notes: int) -> str:
    """One sentence about all checks."""
    if bad:
        return f"tui-descent cannot be used here: {bad} problem{'s' * (bad != 1)} marked BAD"
    if notes:
        return f"tui-descent can be used here; {notes} thing{'s' * (notes != 1)} could be better"
    return "tui-descent can be used here"
