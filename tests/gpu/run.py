"""Run the device tests and time the core on a GPU against the host: ``python tests/gpu/run.py [--out FILE]``.

Writes one JSON object: device, versions, the tests' outcome, and seconds of one MaxMin solve by problem size.
Exit code 0 if the tests passed, 1 if one failed, 2 without a device.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


class Outcomes:
    """pytest plugin: counts outcomes and keeps failures."""

    def __init__(self) -> None:
        self.passed, self.skipped, self.failed = 0, 0, []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count one report."""
        if report.failed:
            self.failed.append({"test": report.nodeid, "error": report.longreprtext[-2000:]})
        elif report.when == "call" and report.passed:
            self.passed += 1
        elif report.skipped:
            self.skipped += 1


def timing(xp: Any, size: int, synchronize: Any) -> dict[str, float]:
    """Seconds and iterations of one coupled QP with ``size`` variables and ``size / 4`` constraints, warmed up."""
    import numpy as np

    from blocc import maxmin
    from blocc.sets import Box

    random = np.random.default_rng(0)
    rows = size // 4
    matrix = xp.asarray(random.standard_normal((rows, size)) / size**0.5)
    curvature, slope = xp.asarray(random.uniform(1, 3, size)), xp.asarray(random.normal(size=size))
    block = maxmin.Constraint(lambda y: matrix @ y - 0.01, lambda y, dual: matrix.T @ dual)
    problem = maxmin.SaddleProblem(
        lambda y: 0.5 * xp.sum(curvature * y * y) + xp.sum(slope * y),
        lambda y: curvature * y + slope,
        {"c": block},
        Box(-10.0, 10.0),
    )
    start = xp.zeros(size)
    maxmin.solve(problem, start, tol=1e-2)
    synchronize()
    began = time.perf_counter()
    answer = maxmin.solve(problem, start, tol=1e-8)
    synchronize()
    return {
        "seconds": time.perf_counter() - began,
        "iterations": answer.iterations,
        "residual": answer.residual,
    }


def main() -> int:
    """Run everything; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the JSON there as well")
    parser.add_argument("--sizes", type=int, nargs="*", default=[100, 1000, 10000])
    arguments = parser.parse_args()

    import array_api_compat
    import numpy as np
    import pytest

    import blocc
    from blocc.arrays import devices, resolve_backend

    record: dict[str, Any] = {
        "devices": devices(),
        "versions": {
            "blocc": blocc.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "array-api-compat": array_api_compat.__version__,
        },
        "platform": platform.platform(),
    }
    code = 0
    if record["devices"]:
        import cupy

        record["versions"]["cupy"] = cupy.__version__
        record["versions"]["cuda_runtime"] = cupy.cuda.runtime.runtimeGetVersion()
        record["versions"]["cuda_driver"] = cupy.cuda.runtime.driverGetVersion()
        outcomes = Outcomes()
        tests = str(Path(__file__).with_name("test_device.py"))
        code = int(pytest.main(["-q", "-p", "no:cacheprovider", tests], plugins=[outcomes]) != 0)
        record["tests"] = vars(outcomes)
        gpu = resolve_backend("cupy")
        host = resolve_backend("numpy")
        record["maxmin"] = {
            str(size): {
                "cupy": timing(gpu, size, cupy.cuda.Device().synchronize),
                "numpy": timing(host, size, lambda: None),
            }
            for size in arguments.sizes
        }
    else:
        code = 2
        try:
            resolve_backend("cupy")
        except blocc.BackendUnavailableError as error:
            record["error"] = str(error)
    text = json.dumps(record, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
