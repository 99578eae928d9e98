"""Whether this machine has the devices that the settings ask Lightning for, asked before anything is read or written."""

from __future__ import annotations

from lightning.pytorch.accelerators import AcceleratorRegistry


def refuse_absent_devices(accelerator: str, devices: int = 1, option: str = "trainer.accelerator=") -> None:
    """Exit if there is no such accelerator, or too few of its devices.

    Args:
        accelerator: ``auto``, ``gpu``, or another name that Lightning knows.
        devices: how many of it.
        option: what the user writes before it, such as ``--device``.
    """
    asked, known = f"{option}{accelerator}", {*AcceleratorRegistry.available_accelerators(), "auto", "gpu"}
    if accelerator not in known:
        raise SystemExit(f"{asked}: expected one of {', '.join(sorted(known))}")
    if accelerator == "auto":
        return
    kinds = [AcceleratorRegistry.get(name) for name in (("cuda", "mps") if accelerator == "gpu" else (accelerator,))]
    there = [kind for kind in kinds if kind.is_available()]
    if not there:
        raise SystemExit(f"{asked}: not a device of this machine")
    count = there[0].auto_device_count()
    if accelerator != "cpu" and devices > count:  # on the CPU they are processes
        raise SystemExit(f"{asked}: this machine has {count} of these devices, not {devices}")
