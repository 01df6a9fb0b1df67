"""Errors of our own code: reported once, never raised into the user's loop."""

import pytest

from tui_descent.instruments.failures import Failures


def test_a_failing_part_is_switched_off_and_reported_once():
    reported = []
    failures = Failures(reported.append)
    for _ in range(3):
        with failures.guard("the norms"):
            raise RuntimeError("dot: expected both vectors to have the same dtype\nsecond line")
    assert "the norms" in failures
    assert "the cosines" not in failures
    assert reported == [
        "switched off: the norms (RuntimeError: dot: expected both vectors to have the same dtype); training goes on"
    ]


def test_an_error_in_the_report_is_not_raised():
    def report(text):
        raise OSError("the link is closed")

    failures = Failures(report)
    failures.add("the norms", ValueError())
    assert "the norms" in failures


def test_an_interrupt_is_not_caught():
    with pytest.raises(KeyboardInterrupt), Failures().guard("the norms"):
        raise KeyboardInterrupt
