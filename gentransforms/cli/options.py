"""The options that several commands share, described once."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Device", "Generator", "MaxBatchSize", "Seed"]

Generator = Annotated[str, typer.Option(help="Bundled name, folder or Hub repository of the generator.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of all that is random; the same seed gives the same picture.")]
Device = Annotated[str, typer.Option(help="Where the generator runs, such as cpu or cuda.")]
MaxBatchSize = Annotated[int, typer.Option(min=1, help="Largest number of images generated at once; lower it to save memory.")]
