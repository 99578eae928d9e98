"""Keep networks of transformers picklable after their first use."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

__all__ = ["drop_capturing_hooks"]


def drop_capturing_hooks(modules: Iterable[nn.Module]) -> None:
    """Remove the local functions that transformers attaches to its models when hidden states are first requested.

    They cannot be pickled, and transformers attaches them again when hidden states are next requested.
    """
    for module in modules:
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__module__", "") == "transformers.utils.output_capturing":
                del module._forward_hooks[key]
        module.__dict__.pop("_output_capturing_hooks_installed", None)
