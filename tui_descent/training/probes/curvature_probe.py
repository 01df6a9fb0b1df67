"""The curvature readings of one run: which clients watch them, when one is due, and the events that report them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from tui_descent.instruments.curvature import Curvature, preconditioner, stability_limit
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.curvature_reading import CurvatureReading
from tui_descent.protocol.events import AnyEvent, CurvatureTaken, Measured, Noted

# Measuring the share of negative eigenvalues takes many more Hessian-vector products, so only every fourth reading
# includes it. For a net with at most 100 parameters every reading includes it.
COUNT_EVERY, COUNT_ALWAYS_UP_TO = 4, 100
# About how long the run may wait for the Hessian, and again for the preconditioned Hessian. If that is too short for a
# large net, the iteration has not converged, and the next reading continues from its eigenvectors.
LIMIT_S = 2.0


class CurvatureProbe:
    """Measures the curvature between two steps, with the weights before the next update, always on the same batch.

    `probe` computes the loss of this batch; `rate` returns the learning rate of the next update. At the steps
    `at_steps` the curvature is measured regardless of the budget. With `watched`, client 0 watches from the start.
    """

    def __init__(
        self,
        probe: Callable[[], Tensor],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        sampler: Sampler,
        rate: Callable[[], float],
        at_steps: Iterable[int] = (),
        watched: bool = False,
    ) -> None:
        self._probe, self._model, self._optimizer = probe, model, optimizer
        self._sampler, self._rate = sampler, rate
        self._at_steps = frozenset(at_steps)
        self._watching: set[int] = set()
        self._instrument: Curvature | None = None
        self._parameters: list[nn.Parameter] = []
        self._readings = 0
        self._last: tuple[int, float] | None = None  # step and rate of the newest reading
        if watched:
            self.set_watching(0, on=True)

    @property
    def may_read(self) -> bool:
        """Whether any reading can become due: a client watches, or the run was started with `at_steps`."""
        return bool(self._watching or self._at_steps)

    def set_watching(self, client: int, *, on: bool) -> str:
        """Add or remove a client that watches the curvature. Returns the reply to the client."""
        (self._watching.add if on else self._watching.discard)(client)
        self._sampler.curvature.want(bool(self._watching))
        return "curvature is measured" if self._watching else "curvature is no longer measured"

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Use another optimizer's preconditioner and stability limit from now on."""
        self._optimizer = optimizer

    def due(self, step: int, *, paced: bool, paused: bool = False) -> bool:
        """Whether to measure before update `step`. Nothing is measured twice at the same step with the same rate."""
        if step in self._at_steps and (self._last is None or self._last[0] != step):
            return True
        if not self._watching or (self._last is not None and self._last == (step, self._rate())):
            return False
        return self._sampler.curvature.due(time.monotonic(), paced=paced or paused)

    def read(self, segment: int, step: int, *, paid: bool) -> list[AnyEvent]:
        """Measure now, and return the events to send.

        With `paid`, the time is charged to the budget, except at a step in `at_steps`. If torch cannot differentiate
        the loss twice, the only event is a warning, and nothing is measured until a client asks again.
        """
        start_cpu_s, start_s = time.thread_time(), time.perf_counter()
        self._last = step, self._rate()
        try:
            forced = step in self._at_steps
            count = forced or self._readings % COUNT_EVERY == 0
            hessian, scaled = self._measure(count_negative=count, limit_s=math.inf if forced else LIMIT_S)
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), "")[:200]
            self._watching.clear()
            self._sampler.curvature.want(False)
            return [Noted(step=step, text=f"the curvature could not be measured: {reason}", level="warning")]
        finally:
            paid = paid and step not in self._at_steps
            self._sampler.curvature.took(time.thread_time() - start_cpu_s, time.monotonic(), paid=paid)
        self._readings += 1
        taken = CurvatureTaken(
            segment=segment,
            step=step,
            hessian=hessian,
            scaled=scaled,
            limit=stability_limit(self._optimizer, self._rate()),
            seconds=time.perf_counter() - start_s,
        )
        return [taken, *measured_events(taken)]

    def _measure(self, *, count_negative: bool, limit_s: float) -> tuple[CurvatureReading, CurvatureReading | None]:
        """Measure the Hessian, and the preconditioned Hessian if the optimizer has a preconditioner, else None."""
        parameters = [p for p in self._model.parameters() if p.requires_grad]  # frozen parameters do not move
        if self._instrument is None or [id(p) for p in parameters] != [id(p) for p in self._parameters]:
            self._instrument, self._parameters = Curvature(self._probe, parameters), parameters
        few = sum(p.numel() for p in parameters) <= COUNT_ALWAYS_UP_TO
        hessian = self._instrument.measure(index=count_negative or few, limit_s=limit_s)
        scales = preconditioner(self._optimizer, parameters)
        return hessian, None if scales is None else self._instrument.measure(preconditioner=scales, limit_s=limit_s)


def measured_events(taken: CurvatureTaken) -> list[Measured]:
    """The reading's main numbers as `Measured` events."""
    hessian, place = taken.hessian, {"segment": taken.segment, "step": taken.step}
    how = f"{hessian.how}, {hessian.products} products, residual"
    events = [
        Measured(name="sharpness", value=hessian.lambda_max, how=f"{how} {hessian.residual_max:.0e}", **place),
        Measured(name="lambda_min", value=hessian.lambda_min, how=f"{how} {hessian.residual_min:.0e}", **place),
    ]
    if taken.limit is not None:
        of_what = " of the preconditioned Hessian" if taken.limit.preconditioned else ""
        how = f"{taken.limit.formula}{of_what}"
        events.append(Measured(name="stability_limit", value=taken.limit.lambda_max, how=how, **place))
    return events
