"""Import the modules of examples/icgan, which import each other by plain names, as a script's folder does."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "examples" / "icgan"


def example(name: str) -> ModuleType:
    """Return the module ``examples/icgan/<name>.py``."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return importlib.import_module(name)
