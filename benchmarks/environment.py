"""What every benchmark records of the machine it ran on."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("blocc", "numpy", "scipy", "cvxpy", "clarabel")


def environment(*packages: str) -> dict[str, Any]:
    """Hardware, load, date and versions: of the core's packages, and of those named."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = named[0].split(":")[1].strip() if named else cpu
    found: dict[str, Any] = {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "all"),
        "date": time.strftime("%Y-%m-%d"),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for name in dict.fromkeys((*PACKAGES, *packages)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
