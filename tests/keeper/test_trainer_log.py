"""What the trainer's log does not contain."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tui_descent.keeper.trainer import NO_NUMPY_WARNING

TORCH = "Failed to initialize NumPy: No module named 'numpy' (Triggered internally at tensor_numpy.cpp:84.)"


@pytest.mark.parametrize(("message", "hidden"), [(TORCH, True), ("a warning of the user's data", False)])
def test_torchs_warning_about_numpy_is_hidden_and_no_other(message: str, hidden: bool) -> None:
    code = f"import warnings; warnings.warn({message!r})"
    done = subprocess.run([sys.executable, NO_NUMPY_WARNING, "-c", code], capture_output=True, text=True, check=True)
    assert (message not in done.stderr) is hidden
