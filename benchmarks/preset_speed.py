"""How fast a preset runs: its steps a second divided by those of a plain loop with the same net, data and optimizer.

Both run by turns in this process, and the CPU seconds of the training thread are compared, which other programs on the
machine disturb less than the time on the clock. The time to build and to end a run cancels out: each run is made twice,
short and long, and the difference counts. The run is headless, with readings and evaluations as a user has them.

    python benchmarks/preset_speed.py transformer --rounds 5
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

SHORT = 20  # steps


def plain_s(name: str, steps: int) -> float:
    """CPU seconds for `steps` steps of a plain loop that reads the loss, as a loop with a progress line does."""
    import torch

    from tui_descent.scenario import presets
    from tui_descent.training.setup.build import build

    setup = build(presets.find(name)[1], on=torch.device("cpu"))
    start_s = 0.0
    for step in range(SHORT + steps):
        if step == SHORT:
            start_s = time.thread_time()
        loss = setup.loss()
        setup.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        setup.optimizer.step()
        loss.item()
    return time.thread_time() - start_s


def run_s(name: str, steps: int) -> float:
    """CPU seconds of the training thread for a headless run of `steps` steps, with everything before and after."""
    from tui_descent import headless, paths
    from tui_descent.protocol.launch import Launch
    from tui_descent.scenario import presets
    from tui_descent.scenario.toml import to_table
    from tui_descent.trainer_thread import TrainerThread
    from tui_descent.training.keeper_link import KeeperLink

    taken = [0.0]

    class TimedThread(TrainerThread):
        def _train(self, link: KeeperLink) -> None:
            start_s = time.thread_time()
            super()._train(link)
            taken[0] = time.thread_time() - start_s

    _, scenario = presets.find(name, overrides=[f"run.steps={steps}"])
    run_id, folder = paths.new_run(name)
    launch = Launch(run=run_id, name=name, folder=str(folder), socket=None, scenario=to_table(scenario))
    launch.write()
    headless.run(launch, listen=lambda _: None, start=TimedThread.start)
    return taken[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="transformer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    ratios, rates = [], []
    with tempfile.TemporaryDirectory(prefix="td") as home:
        os.environ["TUI_DESCENT_HOME"] = home
        run_s(args.name, SHORT)  # warms up what is loaded once
        for _ in range(args.rounds):
            plain = plain_s(args.name, args.steps)
            ours = run_s(args.name, SHORT + args.steps) - run_s(args.name, SHORT)
            ratios.append(plain / ours)
            rates.append(args.steps / ours)
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(
        f"{args.name}: {statistics.median(rates):.0f} steps/s; {middle:.3f} of a plain loop ({low:.3f} to {high:.3f})"
    )


if __name__ == "__main__":
    main()
