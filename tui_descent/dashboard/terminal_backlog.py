"""Whether the terminal keeps up with what is drawn. Over a slow or broken link it does not."""

from __future__ import annotations

import select

from textual.driver import Driver


def is_behind(driver: Driver | None) -> bool:
    """Whether the terminal has not taken the last frame yet.

    Textual's writer thread and its queue are private. If another version has none, the terminal counts as fast.
    """
    writer = getattr(driver, "_writer_thread", None)
    queue = getattr(writer, "_queue", None)
    if writer is None or queue is None:
        return False
    if not queue.empty():
        return True
    poll = select.poll()
    poll.register(writer.fileno(), select.POLLOUT)
    return not poll.poll(0)
