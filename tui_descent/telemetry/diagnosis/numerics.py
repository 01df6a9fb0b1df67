"""NaN and infinity as findings: where they came from, and the advice that loses the fewest steps."""

from __future__ import annotations

from collections.abc import Collection

from tui_descent.protocol.events import Advice, NotFinite
from tui_descent.telemetry.diagnosis.findings import Finding
from tui_descent.telemetry.diagnosis.rule import Rule

# "resume" is not a knob: space lets a held run continue without the update of the bad batch, which was dropped.
DROP = Advice("resume", "without this batch", "space")
UNDO = Advice("undo", "1", "u")
SLOWER = Advice("lr", "/10", "[")

RULES = (
    Rule(
        finding="non-finite",
        kind="numerics",
        condition="a loss or a gradient is NaN or infinite, and the loss had not risen before",
        threshold="none: one number is enough. The loss of every step is checked, and the gradient of the first layer",
        sentence="{what} {value}{where} (step {step:.0f}).",
        check="view 3, events: which came first, loss or gradient; where it came from; whether the weights are finite",
        helps="space in a held run drops this batch: weights and optimizer are as before it. If weights are NaN "
        "already, u goes back. Then mend the cause: an epsilon inside sqrt, log or a division; a check of the data. "
        "run.step(loss, batch=lambda: loss_fn(model(x), y)) names the operation and the layer",
        useless="a smaller rate: the next batch of this kind gives the same NaN",
    ),
    Rule(
        finding="diverged",
        kind="numerics",
        condition="the same, but the loss had clearly risen before, or the last update was larger than the weights",
        threshold="loss above 1.5 times the first one; update above 100 % of the weights, or of weights as large as "
        "Xavier's where they are smaller",
        sentence="{what} {value} after {after}{where} (step {step:.0f}).",
        check="loss chart: the curve climbs before it ends",
        helps="u goes back to weights that were still good; then [ for a smaller rate",
        useless="space: the next batch meets the same large weights",
    ),
)


def numerics_finding(
    event: NotFinite,
    *,
    available: Collection[str],
    user_loop: bool = False,
    rising: bool = False,
    large_updates: bool = False,
) -> Finding:
    """The finding for a non-finite loss or gradient, with advice that the run would accept now.

    `available` are the knobs that can act, "undo" among them if there is a snapshot. `rising`: the loss had clearly
    risen before; `large_updates`: the last update was larger than the weights. Advice for a run that has ended is
    empty: no key acts any more.
    """
    diverged = (rising or large_updates) and _can_be_overflow(event)
    advice: list[Advice] = []
    broken = event.weights_finite is False
    if event.then == "hold" and not broken and not diverged and not _grew_too_large(event.where):
        advice.append(DROP)
    if event.then != "end" and "undo" in available and (broken or event.then == "hold"):
        advice.append(UNDO)
        if diverged and "lr" in available:
            advice.append(SLOWER)
    evidence: dict[str, float | str] = {
        "step": float(event.step),
        "what": event.what,
        "value": event.value,
        "where": f": {event.where}" if event.where and not (diverged and _is_guess(event)) else "",
    }
    if diverged:
        risen = "it had risen" if event.what == "loss" else "the loss had risen"
        evidence["after"] = risen if rising else "too large an update"
    if event.loss is not None:
        evidence["loss"] = event.loss
    if event.cause:
        evidence["cause"] = event.cause
    if event.operation:
        evidence["operation"] = event.operation
    if event.weights_finite is not None:
        evidence["weights"] = "finite" if event.weights_finite else "not finite"
    return Finding(
        finding="diverged" if diverged else "non-finite",
        kind="numerics",
        layer=event.layer,
        sure=1.0,
        evidence=evidence,
        advice=tuple(advice),
    )


def _grew_too_large(where: str) -> bool:
    """Whether numbers of the full range overflowed. If so, the next batch overflows too."""
    return "overflows" in where and "float16" not in where


def _is_guess(event: NotFinite) -> bool:
    """Whether the graph of a loss only lets one suspect where its NaN came from."""
    return event.what == "loss" and event.where.endswith("?")


def _can_be_overflow(event: NotFinite) -> bool:
    """Whether numbers that are too large can be the cause. They are not if the batch was bad, or if an operation got a
    0.
    """
    if _is_guess(event):
        return True
    return event.cause != "batch" and (not event.operation or "overflow" in event.where)
