"""The curvature of one run: for whom it is read and when, always on one probe batch, and what is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from tui_descent.instruments.curvature import Curvature, preconditioner, stability_limit
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.curvature_reading import CurvatureReading
from tui_descent.protocol.events import AnyEvent, CurvatureTaken, Measured, Noted

# The negative share costs 60 products more, or n: it comes with every fourth reading, and always where n is so small.
COUNT_EVERY, COUNT_ALWAYS_UP_TO = 4, 100


class CurvatureProbe:
    """Reads between two steps, with the weights before the next update.

    `probe` computes the loss of the same samples each time; `rate` is the next update's. `at` are steps that are read
    whatever the budget says, `on` whether it is wanted from the start. Client 0 is nobody who could leave.
    """

    def __init__(
        self,
        probe: Callable[[], Tensor],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        sampler: Sampler,
        rate: Callable[[], float],
        at: Iterable[int] = (),
        on: bool = False,
    ) -> None:
        self._probe, self._model, self._optimizer = probe, model, optimizer
        self._sampler, self._rate = sampler, rate
        self._at = frozenset(at)
        self._wanted: set[int] = set()
        self._instrument: Curvature | None = None
        self._parameters: list[nn.Parameter] = []
        self._readings = 0
        self._last: tuple[int, float] | None = None  # step and rate of the newest reading
        if on:
            self.want(0, on=True)

    @property
    def on(self) -> bool:
        """Whether anybody may want a reading."""
        return bool(self._wanted or self._at)

    def want(self, client: int, *, on: bool) -> str:
        """Note who wants it; what was done, in words."""
        (self._wanted.add if on else self._wanted.discard)(client)
        self._sampler.curvature.want(bool(self._wanted))
        return "curvature is read" if self._wanted else "curvature is no longer read"

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Another optimizer makes the updates from here on."""
        self._optimizer = optimizer

    def due(self, step: int, *, paced: bool, still: bool = False) -> bool:
        """Whether to read before update `step`; `still` while the run stands, when only a new place is worth it."""
        if step in self._at and (self._last is None or self._last[0] != step):
            return True
        if not self._wanted or (self._last is not None and self._last == (step, self._rate())):
            return False
        return self._sampler.curvature.due(time.monotonic(), paced=paced or still)

    def read(self, segment: int, step: int, *, paid: bool) -> list[AnyEvent]:
        """Read now. What torch cannot do here is told, and not tried again until somebody asks."""
        start_s, begun_s = time.thread_time(), time.perf_counter()
        self._last = step, self._rate()
        try:
            hessian, scaled = self._measured(count=step in self._at or self._readings % COUNT_EVERY == 0)
        except RuntimeError as error:
            why = next(iter(str(error).splitlines()), "")[:200]
            self._wanted.clear()
            self._sampler.curvature.want(False)
            return [Noted(step=step, text=f"the curvature could not be read: {why}", level="warning")]
        finally:
            paid = paid and step not in self._at
            self._sampler.curvature.took(time.thread_time() - start_s, time.monotonic(), paid=paid)
        self._readings += 1
        taken = CurvatureTaken(
            segment=segment,
            step=step,
            hessian=hessian,
            scaled=scaled,
            limit=stability_limit(self._optimizer, self._rate()),
            seconds=time.perf_counter() - begun_s,
        )
        return [taken, *numbers(taken)]

    def _measured(self, *, count: bool) -> tuple[CurvatureReading, CurvatureReading | None]:
        parameters = [p for p in self._model.parameters() if p.requires_grad]  # a frozen one does not move
        if self._instrument is None or [id(p) for p in parameters] != [id(p) for p in self._parameters]:
            self._instrument, self._parameters = Curvature(self._probe, parameters), parameters
        few = sum(p.numel() for p in parameters) <= COUNT_ALWAYS_UP_TO
        hessian = self._instrument.measure(index=count or few)
        scales = preconditioner(self._optimizer, parameters)
        return hessian, None if scales is None else self._instrument.measure(preconditioner=scales)


def numbers(taken: CurvatureTaken) -> list[Measured]:
    """The reading as plain numbers, for whoever follows those."""
    read, place = taken.hessian, {"segment": taken.segment, "step": taken.step}
    how = f"{read.how}, {read.products} products"
    found = [
        Measured(name="sharpness", value=read.lambda_max, how=f"{how}, off by {read.residual_max:.0e}", **place),
        Measured(name="lambda_min", value=read.lambda_min, how=f"{how}, off by {read.residual_min:.0e}", **place),
    ]
    if taken.limit is not None:
        kind = " of the preconditioned Hessian" if taken.limit.preconditioned else ""
        how = f"{taken.limit.formula}{kind}"
        found.append(Measured(name="stability_limit", value=taken.limit.lambda_max, how=how, **place))
    return found
