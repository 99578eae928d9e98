"""What an earlier call with the same ``--work`` has left of its generator, which part 7 must not take for that of a new training."""

from __future__ import annotations

import shutil
from pathlib import Path

ARMS = ("generated", "weak-1", "weak-2")  # whose banks the generator makes; that of neighbours needs only its encoder, which stays
SAID = ("trained.json", "weak.json")  # what part 4 says of its generator


def forget_generator(work: Path) -> list[str]:
    """Remove what part 4 has said of its generator, and the banks and runs made with it; return the names of banks and runs.

    The runs are unfinished ones in ``runs`` and finished ones in ``part7-fair/runs``: those of two generators are not one experiment.
    """
    for name in SAID:
        (work / name).unlink(missing_ok=True)
    patterns = [pattern for arm in ARMS for pattern in (f"banks/*-{arm}", f"runs/*-{arm}-seed*", f"part7-fair/runs/*-{arm}-seed*")]
    folders = sorted(path for pattern in patterns for path in work.glob(pattern))
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)  # a bank that stays is refused by its fingerprint
    return [folder.relative_to(work).as_posix() for folder in folders]
