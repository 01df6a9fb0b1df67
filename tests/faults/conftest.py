from __future__ import annotations

from process_fixtures import no_process_is_left, start

__all__ = ["no_process_is_left", "start"]
