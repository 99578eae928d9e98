"""A notice board for the workers of a run: which units have begun, how often each killed its worker, and whether to stop.

It lives in a process of its own, which imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

__all__ = ["DEATHS", "GIVEN_UP", "MAKE", "STOPPED", "Board", "Span"]

# Workers that a unit may kill. More than one, because a worker may also die of its neighbours: they share memory.
DEATHS = 3

MAKE, STOPPED, GIVEN_UP = "make", "stopped", "given up"

Span = tuple[int, int]  # the start and stop of a unit


class Board:
    """What the workers of a run tell each other, and the run tells them.

    A unit that has begun, and begins again without having ended, has killed its worker, unless the whole node died.

    Args:
        nodes: returns the nodes that are alive now; by default those of the Ray cluster.

    Example:
        >>> board = Board(nodes=lambda: {"a"})
        >>> [board.begin((0, 4), "a")[0] for _ in range(4)]
        ['make', 'make', 'make', 'given up']
    """

    def __init__(self, nodes: Callable[[], Collection[str]] | None = None) -> None:
        self.nodes = nodes or _nodes_of_ray
        self.stopped = self.passed = False
        self.begun: set[Span] = set()
        self.unfinished: dict[Span, list[str]] = {}  # the node of each attempt

    def begin(self, unit: Span, node: str) -> tuple[str, bool]:
        """Return `MAKE`, `STOPPED` or `GIVEN_UP` for a unit and the node that asks, and whether the generator is known to work."""
        if self.stopped:
            return STOPPED, self.passed
        if attempts := self.unfinished.get(unit):
            alive = self.nodes()  # a dead node is found out before its worker is started again elsewhere
            if sum(each in alive for each in attempts) >= DEATHS:
                return GIVEN_UP, self.passed
        self.unfinished.setdefault(unit, []).append(node)
        self.begun.add(unit)
        return MAKE, self.passed

    def end(self, unit: Span, passed: bool) -> None:
        """Note that a worker has survived a unit, and whether it has seen proof that the generator works."""
        self.unfinished.pop(unit, None)
        self.passed = self.passed or passed

    def stop(self) -> list[Span]:
        """Let no further unit begin; return those that have begun, finished ones too."""
        self.stopped = True
        return sorted(self.begun)


def _nodes_of_ray() -> set[str]:
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
