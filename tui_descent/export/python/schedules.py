"""Learning-rate schedules as source: a function that gives the factor on the base rate at each step."""

from __future__ import annotations

import textwrap

from tui_descent.export.python.text import block
from tui_descent.scenario import schedules
from tui_descent.scenario.spec import ScheduleSpec


def function_name(spec: ScheduleSpec, begin: int) -> str:
    """The name of a schedule's function; `begin` is the step at which the schedule starts."""
    return f"{spec.name}_factor" if not begin else f"{spec.name}_factor_from_{begin}"


def function(spec: ScheduleSpec, begin: int, end: int) -> str:
    """The source of a schedule between two steps, with the operations of `scenario/schedules.py`."""
    t = schedules.resolve_schedule(spec, end - begin)
    last = "" if begin == 0 else f" - {begin}"
    k = f"k = min(step{last}, {t.total})"
    about = schedules.about(spec, end - begin)
    match t.name:
        case "constant":
            lines = ["return 1.0"]
            k = ""
        case "step":
            lines = [f"return max({t.floor!r}, {t.gamma!r} ** (k // {t.every}))"]
        case "cosine":
            lines = [f"return {_half_cosine('1.0', t.floor, f'k / {t.total}')}"]
        case "warmup_cosine":
            lines = _warmup(t)
            if t.warmup < t.total:
                lines.append(f"return {_half_cosine('1.0', t.floor, f'(k - {t.warmup}) / {t.total - t.warmup}')}")
            else:
                lines.append(f"return {t.floor!r}")
        case "one_cycle":
            lines = _one_cycle(t)
        case _:  # wsd
            left = t.total - t.decay
            lines = _warmup(t)
            if t.decay:
                lines += [f"if k <= {left}:", "    return 1.0"]
                lines.append(f"return {_line(1.0, t.floor, f'(k - {left}) / {t.decay}')}")
            else:
                lines.append("return 1.0")
    body = "\n".join(f"    {line}" for line in ([k] if k else []) + lines)
    what = f"{about[0].upper()}{about[1:]}."
    wrapped = textwrap.wrap(what, 100)
    docstring = f'"""{what}"""' if len(wrapped) == 1 else "# " + "\n    # ".join(wrapped)
    return f"def {function_name(spec, begin)}(step):\n    {docstring}\n{body}"


def _warmup(t: schedules.ResolvedSchedule) -> list[str]:
    if not t.warmup:
        return []
    return [f"if k < {t.warmup}:", f"    return {_line(t.start, 1.0, f'(k / {t.warmup})')}"]


def _one_cycle(t: schedules.ResolvedSchedule) -> list[str]:
    top, end = t.warmup - 1, t.total - 1
    start = max(top, 0)
    lines = [f"if k <= {top}:"] if top >= 0 else []
    if top > 0:
        lines.append(f"    return {_half_cosine(repr(t.start), 1.0, f'k / {top}')}")
    elif top == 0:
        lines.append("    return 1.0")
    if end > start:
        share = f"min(1.0, (k - {start}) / {end - start})"
        lines += [f"if k < {end}:", f"    return {_half_cosine('1.0', t.floor, share)}"]
    return [*lines, f"return {t.floor!r}"]


def _line(a: float, b: float, share: str) -> str:
    return f"{a!r} + ({b!r} - {a!r}) * {share if share.startswith('(k /') else f'({share})'}"


def _half_cosine(a: str, b: float, share: str) -> str:
    return f"{b!r} + ({a} - {b!r}) * (1 + math.cos(math.pi * ({share}))) / 2"


PLATEAU = block(f'''
class Plateau:
    """Lowers the rate by a factor when the smoothed loss has not fallen by {schedules.PROGRESS:.0%} for a while."""

    def __init__(self, base, patience, gamma, floor):
        self.base = self.rate = base
        self.patience, self.gamma, self.floor = patience, gamma, floor
        self.seen, self.smoothed, self.best, self.without_progress = 0, 0.0, math.inf, 0

    def step(self, loss):
        self.seen += 1
        self.smoothed += (loss - self.smoothed) / min(self.seen, {schedules.SMOOTHED_OVER})
        if self.smoothed < self.best * (1.0 - {schedules.PROGRESS!r}):
            self.best, self.without_progress = self.smoothed, 0
            return
        self.without_progress += 1
        if self.without_progress > self.patience:
            self.without_progress = 0
            self.rate = min(self.rate, max(self.rate * self.gamma, self.base * self.floor))

    def change_base(self, base):
        self.rate = base * (self.rate / self.base)
        self.base = base
''')


def plateau(spec: ScheduleSpec, begin: int, end: int, base: str) -> str:
    """An expression that creates a plateau schedule."""
    t = schedules.resolve_schedule(spec, end - begin)
    return f"Plateau({base}, patience={t.patience}, gamma={t.gamma!r}, floor={t.floor!r})"
