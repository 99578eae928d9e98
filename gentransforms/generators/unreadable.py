"""What a file is that was expected to be a checkpoint: told by its first bytes, in an error that says what to do."""

from __future__ import annotations

import pickletools
import re
from pathlib import Path

__all__ = ["explain"]

_HEAD = 1 << 20  # bytes that are looked at


def explain(path: Path, error: BaseException | None = None) -> str:
    """Return, as the end of a sentence, what a file is instead of a checkpoint, and what to do.

    Args:
        path: the file.
        error: what reading it raised.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "model.pth"
        >>> _ = file.write_text("<!DOCTYPE html><title>Sign in</title>")
        >>> explain(file)
        'it is an HTML page, such as a login or a download warning: download the file itself'
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as failure:
        return f"it cannot be opened ({failure.strerror})"
    if not head:
        return "it is empty: download it again"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, a few lines that stand for the file: run git lfs pull where it was cloned, or download the file"
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<!--")):
        return "it is an HTML page, such as a login or a download warning: download the file itself"
    if start.startswith(b'{"') or start.startswith(b"[{"):
        return "it is a JSON text, such as a server's error message: download the file itself"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "it is an HDF5 file, as Keras writes them: expected a checkpoint of PyTorch"
    if path.suffix != ".safetensors" and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "it is a safetensors file: give it the suffix .safetensors"
    if head.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!")) or head[257:262] == b"ustar":
        return "it is an archive: unpack it, and name the checkpoint inside"
    if any(word in head for word in (b"dnnlib", b"torch_utils.persistence", b"stylegan")):
        return (
            "it is a pickled StyleGAN network, which carries code that would run on reading: expected a state dict of IC-GAN; "
            "StyleGAN-based IC-GANs are not supported"
        )
    if path.suffix == ".safetensors":
        return "it is damaged, or not whole: download it again"
    text = str(error) if error is not None else ""
    named = re.search(r"(?:GLOBAL|global|class) ([\w]+(?:\.[\w]+)+)", text)
    if found := named[1] if named else _first_class(head):
        return (
            f"it holds an object of {found}, and only tensors are read, since other objects can run code: save its state dict alone, "
            "torch.save(model.state_dict(), path), where you trust it"
        )
    if head.startswith(b"PK") or head.startswith(b"\x80"):
        return "it is damaged, or not whole: download it again"
    return "it is no checkpoint of PyTorch"


def _first_class(head: bytes) -> str | None:
    """Return the name of the first class that a bare pickle would import, read without unpickling; None if it is no such file."""
    if not head.startswith(b"\x80"):
        return None
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(head):
            if opcode.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    except (ValueError, IndexError, UnicodeDecodeError):  # a pickle cut short
        pass
    return None
