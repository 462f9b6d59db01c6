"""Processor cores that this process may use, what they can do, and how a training process uses one."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

#: Where Linux mounts control groups, and where it says which ones this process is in.
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
#: Where Linux says what its processors can do.
CPU_FACTS = Path("/proc/cpuinfo")
#: The environment of a process that trains on a CPU. Two processes of one thread share the small model's steps best:
#: benchmarks/README.md has figures. Without the last two glibc gives memory back after every layer and takes it again,
#: which costs more than the layer.
ON_CPU = {
    "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**29),
}


def allowed_cores() -> int:
    """Cores that this process may run on, whatever its share of their time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> int:
    """Cores that keep this process busy: those that it may run on, as far as the CPU quota of its container reaches.

    A part of a core counts as one. ``os.cpu_count`` knows no quota, ``os.process_cpu_count`` of Python 3.13 neither.
    """
    return max(1, min([allowed_cores(), *(math.ceil(quota) for quota in _quotas())]))


def has_bf16_products() -> bool:
    """Whether the CPU multiplies matrices in bf16 (AMX, AVX-512 BF16). One that does not takes longer than in fp32.

    Only Linux is asked.
    """
    flags = CPU_FACTS.read_text("utf-8", errors="replace").split() if CPU_FACTS.is_file() else []
    return "amx_bf16" in flags or "avx512_bf16" in flags


def _quotas() -> Iterator[float]:
    """CPU quota, in cores, of every control group that has one, from this process's own up to the container's root."""
    own = OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.is_file() else []
    mounts = {CGROUPS: "", CGROUPS / "cpu": "", CGROUPS / "cpu,cpuacct": ""}  # of version 2, then of version 1
    for _, controllers, path in (line.split(":", 2) for line in own):
        if not controllers:
            mounts[CGROUPS] = path
        elif "cpu" in controllers.split(","):
            mounts[CGROUPS / "cpu"] = mounts[CGROUPS / "cpu,cpuacct"] = path
    for mount, path in mounts.items():
        group = mount.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
        while group.is_relative_to(mount):  # in a container its own path may be the host's, and not be here
            if (file := group / "cpu.max").is_file():
                quota, period = file.read_text().split()
            elif (file := group / "cpu.cfs_quota_us").is_file():
                quota, period = file.read_text(), (group / "cpu.cfs_period_us").read_text()
            else:
                quota, period = "max", "0"
            if quota.strip() not in ("max", "-1"):
                yield int(quota) / int(period)
            group = group.parent
