"""How a held generator is sent to another process: with its weights as one block of shared memory.

torch sends each tensor as a file of its own, opened in both processes: forkserver passes at most 254 files to a process, systems often
allow 1,024, and a diffusion pipeline has 1,830 tensors. It also moves the sender's own weights into those files.
"""

from __future__ import annotations

import copyreg
import io
import itertools
import pickle
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing import get_sharing_strategy

from gentransforms.errors import WeightsError
from gentransforms.generators.turns import take_turn
from gentransforms.surroundings import isolate_thread

__all__ = ["drop_block", "send_as_block"]

_ALIGNMENT = 64  # bytes: what vector instructions like, and a multiple of the size of every dtype


@dataclass(frozen=True)
class _Block:
    """The bytes of some storages, one after the other, in shared memory."""

    memory: Tensor
    sizes: list[int]
    # torch's way to share memory when it was made: sharing it in another way would move it, under the slices that weights are.
    strategy: str

    @classmethod
    def copy_of(cls, storages: Sequence[torch.UntypedStorage], whose: str) -> _Block:
        sizes = [storage.nbytes() for storage in storages]
        size = max(sum(map(_padded, sizes)), 1)
        try:
            memory = _bytes(torch.UntypedStorage._new_shared(size))  # type: ignore[no-untyped-call]
        except RuntimeError as error:  # torch's own, for a full /dev/shm
            raise WeightsError(
                f"{whose} cannot be sent to another process: its weights take {size / 2**20:.0f} MiB of shared memory, which "
                f"there is not ({error}): allow more, as docker run --shm-size=8g does, or apply the transform in the main process"
            ) from error
        block = cls(memory, sizes, _strategy())
        for part, storage in zip(block.storages(), storages, strict=True):
            _bytes(part).copy_(_bytes(storage))
        return block

    def storages(self) -> list[torch.UntypedStorage]:
        """Return the storages, as slices of the memory, which they keep alive."""
        whole, ends = self.memory.untyped_storage(), itertools.accumulate(map(_padded, self.sizes), initial=0)
        return [whole[start : start + size] for start, size in zip(ends, self.sizes, strict=False)]

    def holds(self, storages: Sequence[torch.UntypedStorage]) -> bool:
        """Whether these hold the same bytes; they are compared, because weights can change without torch's counting it."""
        if self.strategy != _strategy() or self.sizes != [storage.nbytes() for storage in storages]:
            return False
        return all(_equal(_bytes(a), _bytes(b)) for a, b in zip(self.storages(), storages, strict=True))


# Those that are sent as blocks, with the block of the last time: for the workers of one loader, and those of the next epoch. It has to
# live until a process has opened it, so as long as the generator.
_blocks: weakref.WeakKeyDictionary[nn.Module, _Block | None] = weakref.WeakKeyDictionary()


def send_as_block(generator: nn.Module) -> None:
    """Let multiprocessing send this generator with its weights in one block of shared memory, which all receivers open.

    The block is copied from the weights when it is first sent, and anew if they have changed since; the weights themselves stay where
    they are, and changes reach no process that has been started. What is not on the CPU is sent as torch sends it, and so is what is
    in shared memory already, because changes to that are meant to be seen. `pickle` and `copy` are not affected, nor are other
    generators of the class.

    With too little shared memory, sending it raises a `WeightsError`.

    Args:
        generator: one that nothing trains.

    Example:
        >>> from multiprocessing.reduction import ForkingPickler
        >>> generator = nn.Linear(2, 1)
        >>> send_as_block(generator)
        >>> sent = ForkingPickler.loads(ForkingPickler.dumps(generator))
        >>> sent.weight.equal(generator.weight), generator.weight.is_shared()
        (True, False)
    """
    ForkingPickler.register(type(generator), _reduce)
    _blocks.setdefault(generator, None)


def drop_block(generator: nn.Module) -> None:
    """Free the memory in which a generator was sent; it is still sent as a block."""
    if generator in _blocks:
        _blocks[generator] = None


class _Packer(ForkingPickler):
    """Pickles as multiprocessing does, but leaves out the storages that go into a block, and numbers them.

    In a pickle within the pickle, so what the generator shares with other objects that are sent is there twice; within it, and in any
    number of transforms that hold it, it is one.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.storages: list[torch.UntypedStorage] = []  # which keeps them alive, so that their addresses are their own
        self._numbers: dict[int, int] = {}

    def persistent_id(self, obj: object) -> int | None:
        if not isinstance(obj, torch.UntypedStorage) or obj.device.type != "cpu" or obj.is_shared():
            return None
        address = obj._cdata  # of the storage; that of its memory is 0 for all that are empty
        if address not in self._numbers:
            self._numbers[address] = len(self.storages)
            self.storages.append(obj)
        return self._numbers[address]

    def reducer_override(self, obj: object) -> Any:
        # This generator itself, and any inside it, perhaps in a circle: into the same block.
        return _reduce_plainly(obj) if isinstance(obj, nn.Module) and obj in _blocks else NotImplemented


class _Opener(pickle.Unpickler):
    """Unpickles what `_Packer` pickled."""

    def __init__(self, data: bytes, storages: Sequence[torch.UntypedStorage]) -> None:
        super().__init__(io.BytesIO(data))
        self._storages = storages

    def persistent_load(self, pid: int) -> torch.UntypedStorage:
        return self._storages[pid]


def _reduce(generator: nn.Module) -> Any:
    """Return what multiprocessing needs to send a generator: for one that is sent as a block, its pickle and the block."""
    if generator not in _blocks:
        return _reduce_plainly(generator)
    with take_turn(generator), isolate_thread():
        file = io.BytesIO()
        packer = _Packer(file)
        packer.dump(generator)
        block = _blocks[generator]
        if block is None or not block.holds(packer.storages):
            _blocks[generator] = block = None  # first, so that there need not be memory for both
            if packer.storages:
                _blocks[generator] = block = _Block.copy_of(packer.storages, type(generator).__name__)
    return _open, (file.getvalue(), block)


def _reduce_plainly(module: nn.Module) -> Any:
    """Return what `pickle` takes for an object that no pickler has a rule of its own for."""
    if reduce := copyreg.dispatch_table.get(type(module)):
        return reduce(module)
    return module.__reduce_ex__(pickle.DEFAULT_PROTOCOL)


def _open(data: bytes, block: _Block | None) -> nn.Module:
    """Return the generator that another process has sent, with weights that are slices of the block."""
    generator: nn.Module = _Opener(data, block.storages() if block else ()).load()
    _blocks[generator] = block  # for processes that this one starts
    return generator


def _strategy() -> str:
    return str(get_sharing_strategy())  # type: ignore[no-untyped-call]


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of bytes are equal; by eight bytes, which takes a third of the time."""
    whole = len(a) // 8 * 8
    return torch.equal(a[:whole].view(torch.int64), b[:whole].view(torch.int64)) and torch.equal(a[whole:], b[whole:])
