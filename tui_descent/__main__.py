"""`python -m tui_descent` is `tui-descent`."""

import sys

from tui_descent.cli import main

sys.exit(main())
