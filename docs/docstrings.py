"""How this project's docstrings are read for the site."""

from __future__ import annotations

from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Read ``Example:`` as the section that griffe calls ``Examples:``, so that doctests are shown as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the section in one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
