"""What both recipes share, from examples/common. A recipe's folder is all that Python searches when one of its scripts runs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from common.changes import name_changes, name_hash
from common.devices import settle_device
from common.finite import is_finite
from common.labels import LABEL_COLUMNS, find_label_column, number_labels
from common.layers import fill_in, flatten, read_layers
from common.outputs import refuse_unwritable
from common.precision import settle_precision
from common.record import read_record, refuse_another_run, write_record
from common.rows import spaced, warn_of_absent_classes
from common.torchvision_sets import open_torchvision
from common.whole import write_whole

__all__ = [
    "LABEL_COLUMNS", "fill_in", "find_label_column", "flatten", "is_finite", "name_changes", "name_hash", "number_labels",
    "open_torchvision", "read_layers", "read_record", "refuse_another_run", "refuse_unwritable", "settle_device",
    "settle_precision", "spaced", "warn_of_absent_classes", "write_record", "write_whole",
]  # fmt: skip
