"""Which readers, whose turn and how often: the sampler that the settings ask for."""

from __future__ import annotations

from inferspan.config import Settings
from inferspan.devices.host import Host
from inferspan.devices.nvml import Nvml
from inferspan.devices.ownership import Ownership
from inferspan.devices.sampler import Sampler


def sampler(settings: Settings, policy: str = "", deadline_s: float = 1.0) -> Sampler:
    """The sampler that the settings ask for; ``policy`` is ``agent`` or ``always`` in place of
    ``settings.devices``, and then all of the machine's devices are read."""
    given, policy = policy, policy or settings.devices
    return Sampler(
        [] if policy == "never" else [Nvml(settings.devices_detail)],
        Host(settings.process_stats),
        Ownership(policy, settings.devices_lock),
        all_devices=bool(given),
        interval_s=settings.devices_interval,
        deadline_s=deadline_s,
    )
