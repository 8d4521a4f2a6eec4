"""The hardware a config asks for, and whether it is here: told before any work is done."""

import os
from importlib.util import find_spec

import torch


def pick_device(accelerator: str) -> torch.device:
    """The device that `trainer.accelerator` names.

    Raises:
        ValueError: hardware that is not there.
    """
    found = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if accelerator not in ("auto", "cpu", found.type):
        raise ValueError(f"trainer.accelerator ({accelerator}) is not on this machine, which has {found.type}")
    return torch.device("cpu") if accelerator == "cpu" else found


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory that a device has in all; None where it does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def check_hardware(accelerator: str, *, devices: int, precision: str, compiled: bool) -> torch.device:
    """The device that `trainer.accelerator` names, if it can do what the other options of `trainer` ask for.

    Raises:
        ValueError: hardware that is not there, or that cannot.
    """
    device = pick_device(accelerator)
    if device.type != "cpu" and devices > (present := torch.accelerator.device_count()):
        raise ValueError(f"trainer.devices ({devices}) must be at most {present}, the {device.type} devices there are")
    if device.type == "cuda":
        # Older ones imitate it, at a fraction of the speed of fp32.
        if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            name = torch.cuda.get_device_name(device)
            raise ValueError(f"trainer.precision (bf16) must be fp32: {name} has no products of bfloat16")
        if compiled and find_spec("triton") is None:
            raise ValueError("trainer.compile (true) must be false: for cuda it needs the package triton")
    return device
