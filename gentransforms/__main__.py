"""``python -m gentransforms``: the command line."""

from __future__ import annotations

from gentransforms.cli.main import run

if __name__ == "__main__":
    run()
