"""Which devices this process can see, and which index torch gives them: by UUID, never by equal numbers.

CUDA counts otherwise than the driver: ``CUDA_VISIBLE_DEVICES`` leaves out and reorders, and without
``CUDA_DEVICE_ORDER=PCI_BUS_ID`` the fastest board comes first (pytorch#86539). Torch is asked only once it has
initialised CUDA itself. What cannot be known without it is taken as not visible until then.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from inferspan.devices.reader import Device


def torch_indices(devices: Sequence[Device]) -> dict[str, int]:
    """Torch's index of each device that it has, by the device's id; empty before torch has initialised CUDA."""
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    if not devices or cuda is None or not cuda.is_initialized():
        return {}
    ids = {_bare(device.id): device.id for device in devices}
    found = {}
    for index in range(cuda.device_count()):
        device_id = ids.get(_bare(str(getattr(cuda.get_device_properties(index), "uuid", ""))))
        if device_id is not None:
            found[device_id] = index
    return found


def visible(devices: Sequence[Device], environ: Mapping[str, str], indices: Mapping[str, int]) -> set[str]:
    """Ids of the devices that CUDA gives this process, of a MIG instance also its board's.

    ``environ`` is read for CUDA's own variables; ``indices`` are torch's, where it has them.
    """
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return {device.id for device in devices}
    boards = [device for device in devices if not device.parent]
    seen: set[str] = set()
    for word in (word.strip() for word in listed.split(",")):
        if word.isdigit():
            if len({board.name for board in boards}) > 1 and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
                return set(indices)
            found = boards[int(word) : int(word) + 1]
        else:
            # a prefix does if it fits one device only; the old form of a MIG instance begins with its board
            wanted = word.removeprefix("MIG-").split("/")[0] if word.startswith("MIG-GPU-") else word
            found = [d for d in devices if wanted.startswith(("GPU-", "MIG-")) and d.id.startswith(wanted)]
        if len(found) != 1:
            break  # CUDA, too, stops at the first that is not there: -1, an empty list
        seen.update({found[0].id, found[0].parent} - {""})
    return seen


def _bare(uuid: str) -> str:
    return uuid.removeprefix("GPU-").removeprefix("MIG-").lower()
