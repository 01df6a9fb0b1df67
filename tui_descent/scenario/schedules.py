"""Learning-rate schedules as formulas, in plain Python: each gives the factor on the base rate at every update.

Update k of n (k starts at 0) uses factor(k) × the base rate. Where `torch.optim.lr_scheduler` has the same schedule,
the numbers are equal. From update n on the factor stays at its last value; torch's schedulers would continue or raise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from tui_descent.scenario.spec import ScheduleSpec

# The fields of each schedule, with their defaults.
FIELDS: dict[str, dict[str, float | int]] = {
    "constant": {},
    "step": {"every": 0.3, "gamma": 0.1, "floor": 0.0},
    "cosine": {"floor": 0.0},
    "warmup_cosine": {"warmup": 0.1, "start": 0.04, "floor": 0.0},
    "one_cycle": {"warmup": 0.3, "start": 0.04, "floor": 4e-6},  # torch's defaults: start 1/25, floor start × 1e-4
    "wsd": {"warmup": 0.1, "start": 0.04, "decay": 0.2, "floor": 0.0},
    "plateau": {"patience": 100, "gamma": 0.5, "floor": 0.0},
}
_ALL = tuple(dict.fromkeys(field for fields in FIELDS.values() for field in fields))

# The plateau schedule smooths the loss over SMOOTHED_OVER updates. The loss counts as falling when it is below its best
# value by at least the fraction PROGRESS.
SMOOTHED_OVER = 50
PROGRESS = 0.01


class ResolvedSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule over `total` updates with all defaults filled in.

    `warmup`, `every`, `decay` and `patience` are numbers of updates; `start` and `floor` are fractions of the base
    rate.
    """

    name: str
    total: int
    warmup: int = 0
    start: float = 1.0
    every: int = 1
    gamma: float = 1.0
    decay: int = 0
    floor: float = 0.0
    patience: int = 1


def resolve_schedule(spec: ScheduleSpec, total: int) -> ResolvedSchedule:
    """Fill in the defaults for `total` updates (at least 1). Lengths are cut to at most `total`."""
    total = max(1, total)
    given = {f: default if (v := getattr(spec, f)) is None else v for f, default in FIELDS[spec.name].items()}
    for field in ("warmup", "decay", "every"):
        if field in given:
            given[field] = _updates(given[field], total)
    if "every" in given:
        given["every"] = max(1, given["every"])
    if "decay" in given:
        given["decay"] = min(given["decay"], total - int(given["warmup"]))
    return msgspec.convert({"name": spec.name, "total": total, **given}, ResolvedSchedule)


def factor(spec: ScheduleSpec, step: int, total: int) -> float:
    """The factor on the base rate for update `step` of `total`.

    Raises `ValueError` for plateau, whose rate depends on future losses.
    """
    return resolved_factor(resolve_schedule(spec, total), step)


def resolved_factor(t: ResolvedSchedule, step: int) -> float:
    """The factor on the base rate for update `step`. Raises `ValueError` for plateau."""
    if t.name not in _FORMULAS:
        raise ValueError(f"{t.name}: the curve cannot be predicted, because it depends on future losses")
    return _FORMULAS[t.name](t, min(max(step, 0), t.total))


def curve(spec: ScheduleSpec, total: int, *, points: int = 200) -> tuple[tuple[int, float], ...]:
    """(update, factor) at up to `points` updates from 0 to `total`, both included. Raises like `factor`."""
    t = resolve_schedule(spec, total)
    count = max(2, min(points, t.total + 1))
    steps = [round(n * t.total / (count - 1)) for n in range(count)]
    return tuple((k, resolved_factor(t, k)) for k in steps)


def about(spec: ScheduleSpec, total: int) -> str:
    """Describe the curve over `total` updates in one phrase."""
    t = resolve_schedule(spec, total)
    low = f"{t.floor:.3g} of the base rate" if t.floor >= 1e-3 else "nearly 0" if t.floor else "0"
    rise = f"up from {t.start:.2g} of the base rate in {t.warmup:,} steps, " if t.warmup else ""
    least = f", at least {low}" if t.floor else ""
    return {
        "constant": "the base rate at every step",
        "step": f"×{t.gamma:g} every {t.every:,} steps{least}",
        "cosine": f"half a cosine from the base rate to {low} over {t.total:,} steps",
        "warmup_cosine": f"{rise}half a cosine to {low} in {t.total - t.warmup:,} steps",
        "one_cycle": f"{rise}down to {low} in {t.total - t.warmup:,} steps; momentum is not changed",
        "wsd": f"{rise}constant for {t.total - t.warmup - t.decay:,} steps, then linear to {low} in {t.decay:,} steps",
        "plateau": f"×{t.gamma:g} whenever the smoothed loss has not fallen by {PROGRESS:.0%} "
        f"in {t.patience:,} steps{least}; depends on the loss",
    }[t.name]


def problems(spec: ScheduleSpec, total: int | None, *, whole: str = "run.steps") -> list[tuple[str, str]]:
    """Fields that do not fit the schedule or that contradict each other, as (field, message).

    `total` is the number of updates, and `whole` is its name in messages. For a run that was shortened `total` is None:
    its lengths are cut to fit, so they are not reported.
    """
    takes = FIELDS[spec.name]
    found = []
    for field in _ALL:
        if getattr(spec, field) is not None and field not in takes:
            owners = ", ".join(name for name, fields in FIELDS.items() if field in fields)
            found.append(
                (field, f"{spec.name} does not accept {field}; leave it out, or use a schedule with {field}: {owners}")
            )
    if found or total is None:
        return found
    lengths = {f: _raw(getattr(spec, f), takes[f], total) for f in ("warmup", "decay") if f in takes}
    for field, length in lengths.items():
        if length > total:
            found.append((field, f"found {length:,} updates; allowed: at most {whole} = {total:,}"))
    if not found and sum(lengths.values()) > total:
        text = (
            f"found {lengths['warmup']:,} updates of warmup and {lengths['decay']:,} of decay; "
            f"allowed: together at most {whole} = {total:,}"
        )
        found.append(("decay", text))
    return found


def _raw(value: float | int | None, default: float | int, total: int) -> int:
    length = default if value is None else value
    return length if isinstance(length, int) else round(length * total)


def _updates(length: float | int, total: int) -> int:
    return min(total, _raw(length, 0, total))


def _constant(t: ResolvedSchedule, k: int) -> float:
    return 1.0


def _step(t: ResolvedSchedule, k: int) -> float:
    return max(t.floor, t.gamma ** (k // t.every))


def _cosine(t: ResolvedSchedule, k: int) -> float:
    return _half_cosine(1.0, t.floor, k / t.total)


def _warmup_cosine(t: ResolvedSchedule, k: int) -> float:
    if k < t.warmup:
        return _line(t.start, 1.0, k / t.warmup)
    # If the warm-up covers all updates, the floor directly follows the maximum.
    return _half_cosine(1.0, t.floor, (k - t.warmup) / (t.total - t.warmup)) if t.warmup < t.total else t.floor


def _one_cycle(t: ResolvedSchedule, k: int) -> float:
    # As in torch, the maximum is at update warmup − 1, and the floor is reached at update n − 1.
    top, end = t.warmup - 1, t.total - 1
    if k <= top:
        return _half_cosine(t.start, 1.0, k / top) if top > 0 else 1.0
    return _half_cosine(1.0, t.floor, min(1.0, (k - max(top, 0)) / (end - max(top, 0)))) if k < end else t.floor


def _wsd(t: ResolvedSchedule, k: int) -> float:
    if k < t.warmup:
        return _line(t.start, 1.0, k / t.warmup)
    left = t.total - t.decay
    return 1.0 if k <= left else _line(1.0, t.floor, (k - left) / t.decay)


def _line(a: float, b: float, share: float) -> float:
    return a + (b - a) * share


def _half_cosine(a: float, b: float, share: float) -> float:
    return b + (a - b) * (1 + math.cos(math.pi * share)) / 2


_FORMULAS: dict[str, Callable[[ResolvedSchedule, int], float]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
    "warmup_cosine": _warmup_cosine,
    "one_cycle": _one_cycle,
    "wsd": _wsd,
}
