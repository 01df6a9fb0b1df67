"""A scenario's trainer as a thread of this process. Many short runs then import torch only once."""

from __future__ import annotations

import os
import signal
from threading import Thread

from tui_descent.keeper.trainer import Trainer
from tui_descent.protocol.launch import Launch, open_connection
from tui_descent.training.keeper_link import KeeperLink
from tui_descent.training.scenario_run import train_scenario


class TrainerThread(Trainer):
    """Does in a thread what the trainer's process does otherwise. Signals do not reach it; the keeper's `Stop` does."""

    thread: Thread
    _code: int | None = None
    _abandoned = False

    @classmethod
    def start(cls, launch: Launch) -> TrainerThread:
        """Start training. Raises `OSError`."""
        with open_connection(launch) as (ours, theirs, file):
            link = KeeperLink(theirs.dup(), os.dup(file), launch)
        trainer = cls(ours, file)
        trainer.thread = Thread(target=trainer._train, args=(link,), daemon=True)
        trainer.thread.start()
        return trainer

    def _train(self, link: KeeperLink) -> None:
        self._code = train_scenario(link)

    def exited(self) -> bool:
        """Whether training has ended, or the keeper has given up waiting for its end."""
        return self._abandoned or not self.thread.is_alive()

    def signal(self, number: signal.Signals) -> None:
        """A thread cannot be killed. What would kill a process leaves the thread alone; it ends with this process."""
        self._abandoned = self._abandoned or number == signal.SIGKILL

    def exit_code(self) -> int | None:
        """What the process would return; None if the thread has died."""
        return self._code
