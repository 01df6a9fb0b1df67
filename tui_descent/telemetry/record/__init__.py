"""The record of a run: everything that happened, in one SQLite file in the run's folder. `docs/record.md` describes it.

The keeper writes it through `RecordWriter`; anybody may read it through `Record`, also while it is written.
"""

from tui_descent.telemetry.record.reader import Record as Record
from tui_descent.telemetry.record.reader import RunInfo as RunInfo
from tui_descent.telemetry.record.reader import has_steps as has_steps
from tui_descent.telemetry.record.schema import RECORD_FILE as RECORD_FILE
from tui_descent.telemetry.record.schema import RecordError as RecordError
from tui_descent.telemetry.record.writer import RecordWriter as RecordWriter
