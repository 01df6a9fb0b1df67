"""Makes `python -m tui_descent` the same as `tui-descent`."""

import sys

from tui_descent.cli import main

sys.exit(main())
