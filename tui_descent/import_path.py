"""Importing this module removes the current folder from the import path if an empty entry of PYTHONPATH has put it
there. Such an entry is usually an accident, as in `PYTHONPATH=$PYTHONPATH:/my/code`. With it, an import could run a
file such as `random.py` of the current folder.
"""

from __future__ import annotations

import os
import sys

_entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if len(_entries) > 1 and "" in _entries:
    _wanted = {entry for entry in _entries if os.path.isabs(entry)}
    try:
        _here = os.getcwd()
    except OSError:  # the current folder has been removed
        _here = ""
    sys.path[:] = [path for path in sys.path if path in _wanted or path not in ("", _here)]
