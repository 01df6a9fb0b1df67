"""The training loop of scenario runs: plain PyTorch inside a `Watch`."""

from __future__ import annotations

import torch

from tui_descent.training.run_description import describe
from tui_descent.training.setup.build import Setup
from tui_descent.training.watch.watch import Watch


def train(run: Watch, setup: Setup, *, steps: int, evaluate_every: int, attended: bool) -> None:
    """Make `steps` updates, and evaluate every `evaluate_every` steps (0: never).

    With `attended`, an error pauses the run, and at the end the run waits for commands. Raises `StopRun` to end early.
    """
    mode = run.control.mode
    mode.goal = steps
    run.begin_step()
    replan = False  # whether the coming step is already planned: its last attempt was dropped
    while True:
        while run.next_step < mode.goal:
            if run.progress.rewound:
                run.begin_step()
            elif replan or mode.pauses_after(run.next_step):
                run.plan_step()  # the pause may have been requested after this step was planned
            replan = True
            if evaluate_every and run.next_step % evaluate_every == 0 and run.next_step > 0:
                run.control.evaluate()
            failure = None
            optimizer = setup.optimizer  # the optimizer knob may have replaced it
            if setup.path is not None:
                setup.path.add(run.next_step)
            try:
                loss = setup.loss()
                if not run.loss(loss):
                    continue
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                replan = not run.step(loss)
            except (RuntimeError, ValueError, ArithmeticError) as error:
                if not attended:
                    raise
                failure = _advice(error)
            # After `except`, since inside it the exception's traceback keeps the failed step's tensors alive.
            if failure is not None:
                loss = None  # type: ignore[assignment]
                setup.optimizer.zero_grad()
                run.control.hold(failure)
        run.control.report_all()
        if run.next_step < mode.goal:
            continue  # a GPU has just reported that it skipped the last updates
        run.control.save_at_end()
        if not attended:
            return
        if run.control.waits_at_end:
            run.report_end_reached()
        more = run.control.wait_at_end(steps)
        if run.next_step >= mode.goal:  # false after an undo
            mode.goal = run.next_step + more


def _advice(error: BaseException) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        found = describe(error)
        return f"out of memory: {found}; this step was not counted. Free memory, or press q and use a smaller batch"
    return f"the step raised {describe(error)}; this step was not counted. space tries the next batch, q leaves"
