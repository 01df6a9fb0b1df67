"""A trainer without torch, for tests of what is around it: `exec -- python tiny_trainer.py [STEPS] [OUTCOME] [THEN]`.

Without STEPS it goes on until it is asked to stop. With the OUTCOME "untold" it does not report its end. THEN is Python
code for what the script does afterwards. The names in its events have characters that ASCII lacks.
"""

from __future__ import annotations

import sys
import time

from factories import started, turned

from tui_descent.protocol.commands import Stop
from tui_descent.protocol.events import RunEnded, StateChanged
from tui_descent.training.keeper_link import KeeperLink


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else None
    status = sys.argv[2] if len(sys.argv) > 2 else "finished"
    link = KeeperLink.inherited() or KeeperLink.joined()
    assert link is not None
    ring = link.make_ring(30)
    link.emit(started(name="fünf → λ", steps=steps, scenario=None, knobs=()))
    link.emit(StateChanged(state="running"))
    link.emit(turned(0, "0.1", "0.2", knob="lr"))
    step, stopped = 0, False
    while not stopped and step != steps:
        ring.write_step(step, 1 / (step + 1), 0.1, step * 1e-3, 0, False)
        ring.beat(time.monotonic())
        step += 1
        if steps is None:
            link.wait(0.05)
            stopped = any(isinstance(request.command, Stop) for request in link.commands()) or link.lost
    if status == "untold":
        return
    reason = "" if status == "finished" else "it → failed"
    link.emit(RunEnded(status="stopped" if stopped else status, step=step, loss=0.5, reason=reason))  # type: ignore[arg-type]
    link.close()


if __name__ == "__main__":
    main()
    exec("".join(sys.argv[3:]))
