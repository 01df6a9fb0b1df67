"""How long a run has been running, and how long its steps usually take."""

from __future__ import annotations

# A gap between two steps (an evaluation, a checkpoint, a suspended machine) is no step's time: no more than this many
# usual steps of it count.
LONGEST_STEP = 4.0
# Of the newest figure in the running means of a step's time.
NEWEST = 1 / 16
# Steps without a reading, after which their usual time is known.
KNOWN_AFTER = 8


class Usual:
    """Of one run: `step_s` and `wait_s` are a usual step's busy time and wait, `busy_s` and `waited_s` all there were.

    A step's busy time is without readings, all busy time with them. `steps` is how many there were.
    """

    def __init__(self) -> None:
        self.step_s = self.wait_s = 0.0
        self.busy_s = self.waited_s = 0.0
        self.steps = 0
        self._unread = 0  # steps without a reading
        self._last_s = self._last_wait_s = 0.0  # what a step took by the last look

    @property
    def known(self) -> bool:
        """Whether a usual step's time is that of more than the first few."""
        return self._unread >= KNOWN_AFTER

    @property
    def time_s(self) -> float:
        """Seconds that the run's steps took so far, watching included: CPU time and waits."""
        return self.busy_s + self.waited_s

    def went(self, busy_s: float, waited_s: float, *, steps: int, readings_s: float, read: bool, few: bool) -> None:
        """So many steps took this long together, of which readings took `readings_s`, and waited besides.

        `read`: there was one among them; `few`: and hardly any step that it has not disturbed.
        """
        plain_s = max(busy_s - readings_s, 0.0) / steps
        usual_s = self.step_s or plain_s
        # One gap between two of the steps, however many they were; what two looks find one after the other is no gap.
        before_s, self._last_s = self._last_s, plain_s
        plain_s = min(plain_s, max((1 + (LONGEST_STEP - 1) / steps) * usual_s, before_s))
        self.busy_s += plain_s * steps + readings_s
        wait_s = waited_s / steps
        before_s, self._last_wait_s = self._last_wait_s, wait_s
        wait_s = min(wait_s, max(LONGEST_STEP * max(self.wait_s, self.step_s), before_s))
        self.waited_s += wait_s * steps
        self.steps += steps
        if not few or not self.known:
            self._unread += 0 if read else steps
            self.step_s = usual_s + (plain_s - usual_s) * min(1.0, steps * NEWEST)
            self.wait_s += (wait_s - self.wait_s) * min(1.0, steps * NEWEST)
