"""Makes `python -m tui_descent` the same as `tui-descent`."""

import sys

if not sys.flags.safe_path:
    sys.path.pop(0)  # the current folder, whose files are not ours to import

from tui_descent import interrupts

interrupts.end_at_once()

from tui_descent.cli import main  # noqa: E402

sys.exit(main())
