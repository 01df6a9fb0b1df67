"""The training loop of scenario runs, the first user of `Watch`: plain PyTorch, read from top to bottom."""

from __future__ import annotations

import torch

from tui_descent.training.run_description import describe
from tui_descent.training.setup.build import Setup
from tui_descent.training.watch.watch import Watch


def train(run: Watch, setup: Setup, *, steps: int, evaluate_every: int, attended: bool) -> None:
    """Make `steps` updates; attended, pause at an error and wait at the end. Raises `StopRun` to end early."""
    mode = run.control.mode
    mode.goal = steps
    run.begin_step()
    again = False
    while True:
        while run.next_step < mode.goal:
            if run.progress.rewound:
                run.begin_step()
            elif again or mode.pauses_after(run.next_step):
                run.plan_step()  # it may have been among fast steps, or asked for during a pause
            again = True
            if evaluate_every and run.next_step % evaluate_every == 0 and run.next_step > 0:
                run.control.evaluate()
            trouble = None
            optimizer = setup.optimizer  # another one after its knob was turned
            try:
                loss = setup.loss()
                if not run.loss(loss):
                    continue
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                again = not run.step(loss)
            except (RuntimeError, ValueError, ArithmeticError) as error:
                if not attended:
                    raise
                trouble = _advice(error)
            # Outside the handler, which keeps the failed step's tensors alive.
            if trouble is not None:
                loss = None  # type: ignore[assignment]
                setup.optimizer.zero_grad()
                run.control.hold(trouble)
        run.control.report_all()
        if run.next_step < mode.goal:
            continue  # a GPU reports only now that it skipped the last updates
        if not attended:
            return
        more = run.control.wait_at_end(steps)
        if run.next_step >= mode.goal:  # and not back at an earlier step
            mode.goal = run.next_step + more


def _advice(error: BaseException) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory: {describe(error)}; this step was not counted. Free memory, or q and a smaller batch"
    return f"the step raised {describe(error)}; it was not counted. space tries the next batch, q leaves"
