"""MaxMin's cost per iteration against memory bandwidth, and batches against loops, on NumPy or on a GPU through CuPy.

    python -m benchmarks.gpu [--backend numpy|cupy] [--sizes 1000,100000] [--batches 10,100,1000] [--out DIR]

An iteration reads and writes a known number of bytes: it cannot be faster than these over the bandwidth that
a plain array sum reaches on the same device (measured here). What it takes beyond that is launches and Python.
A batch of small dense QPs is solved by one call of `solve_batch`, one by one by `solve`, and (on NumPy) one by one by
OSQP and DAQP where they are installed. On NumPy it also times a call of a small function and of its gradient through
every library that takes derivatives and is installed: autograd, torch, jax.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import environment
from blocc.arrays import resolve_backend
from blocc.autodiff import Engine, Jax, Torch
from blocc.errors import LowerNotSolvedError
from blocc.maxmin import Constraint, SaddleProblem, solve, solve_batch
from blocc.sets import Box


def _wait(xp: Any) -> Callable[[], None]:
    """Block until the device is idle; nothing to do on the host."""
    if "cupy" not in xp.__name__:
        return lambda: None
    import cupy

    return lambda: cupy.cuda.Device().synchronize()


def bandwidth(xp: Any, size: int = 10_000_000) -> float:
    """Bytes a second of ``a = b + c`` (two read, one written) over a dozen arrays, about what an iteration keeps.

    At the default size no cache holds them; at a problem's size it is what the same arrays reach where they lie.
    """
    held, wait = [xp.ones(size) for _ in range(12)], _wait(xp)
    rounds = max(1, 2_000_000 // size)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(rounds):
            for b, c in zip(held[::2], held[1::2], strict=True):
                b + c
        wait()
        best = min(best, (time.perf_counter() - began) / rounds)
    return 3 * 8 * size * (len(held) // 2) / best


def separable(xp: Any, size: int) -> tuple[SaddleProblem, Any]:
    """A separable QP whose budget rows are sums over groups of 10: array operations alone, no matrix."""
    random = np.random.default_rng(size)
    curvature = xp.asarray(
        10.0 ** random.uniform(-5, 1, size)
    )  # slow to solve: it must not stop early
    slope, groups = xp.asarray(random.normal(size=size)), size // 10

    def value(y: Any) -> Any:
        return xp.sum(xp.reshape(y, (groups, 10)), axis=1) - 0.1

    def pullback(y: Any, dual: Any) -> Any:
        return xp.reshape(xp.broadcast_to(xp.reshape(dual, (groups, 1)), (groups, 10)), (size,))

    problem = SaddleProblem(
        lambda y: xp.sum(0.5 * curvature * y * y + slope * y),
        lambda y: curvature * y + slope,
        {"c": Constraint(value, pullback)},
        Box(-1.0, 1.0),
    )
    return problem, xp.zeros(size)


# Arrays of y's size that pass through memory in one iteration of the separable problem, counted in _Iteration.step:
# gradient 5 (curvature, y, product, slope, sum) + 3 with the multipliers, primal step 4, projection 4, reflection 6,
# anchor 7, and the constraint's sum 1.
PASSES = 30


def per_iteration(xp: Any, size: int, iterations: int) -> dict[str, float]:
    """Seconds of one iteration, from two lengths of run so that the setup cancels, and its floor."""
    problem, start = separable(xp, size)
    wait, seconds = _wait(xp), []
    for count in (iterations, 3 * iterations):
        began = time.perf_counter()
        with contextlib.suppress(LowerNotSolvedError):
            solve(problem, start, tol=0.0, max_iterations=count)
        wait()
        seconds.append(time.perf_counter() - began)
    return {
        "size": size,
        "seconds": (seconds[1] - seconds[0]) / (2 * iterations),
        "bytes": 8.0 * PASSES * size,
    }


def programs(count: int, n: int = 20, m: int = 8) -> dict[str, np.ndarray]:
    """Random strongly convex QPs ``1/2 y'Qy + q'y``, ``A y <= b``, feasible by construction."""
    random = np.random.default_rng(count)
    root = random.normal(size=(count, n, n))
    A = random.normal(size=(count, m, n))
    return {
        "Q": root @ np.swapaxes(root, 1, 2) / n + np.eye(n),
        "q": 3 * random.normal(size=(count, n)),
        "A": A,
        "b": random.uniform(0.0, 0.5, (count, m)),
    }


def batch(xp: Any, count: int, tol: float = 1e-6) -> dict[str, Any]:
    """Seconds for all QPs, by one batch and one by one."""
    data = programs(count)
    Q, q, A, b = (xp.asarray(data[k]) for k in ["Q", "q", "A", "b"])

    def times(matrix: Any, vector: Any) -> Any:
        return xp.matmul(matrix, vector[..., None])[..., 0]

    def build(Q: Any, q: Any, A: Any, b: Any) -> SaddleProblem:
        back = xp.matrix_transpose(A)
        return SaddleProblem(
            lambda y: xp.sum(0.5 * times(Q, y) * y + q * y, axis=-1),
            lambda y: times(Q, y) + q,
            {"c": Constraint(lambda y: times(A, y) - b, lambda y, dual: times(back, dual))},
        )

    wait = _wait(xp)
    began = time.perf_counter()
    found = solve_batch(build(Q, q, A, b), xp.zeros(q.shape), tol=tol)
    wait()
    row: dict[str, Any] = {
        "count": count,
        "batch": time.perf_counter() - began,
        "solved": int(found.solved.sum()),
        "iterations": found.iterations,
    }
    some = min(count, 50)  # the loop is timed on 50 and scaled
    began = time.perf_counter()
    for i in range(some):
        solve(build(Q[i], q[i], A[i], b[i]), xp.zeros(q.shape[1]), tol=tol)
    wait()
    row["loop"] = (time.perf_counter() - began) * count / some
    if "cupy" not in xp.__name__:
        for name, run in (("osqp", _osqp), ("daqp", _daqp)):
            began = time.perf_counter()
            for i in range(count):
                run(*(data[k][i] for k in ["Q", "q", "A", "b"]), tol)
            row[name] = time.perf_counter() - began
    return row


def _osqp(Q: Any, q: Any, A: Any, b: Any, tol: float) -> None:
    import osqp
    from scipy.sparse import csc_matrix

    solver = osqp.OSQP()
    low = np.full(len(b), -np.inf)
    options = {"eps_abs": tol, "eps_rel": tol, "verbose": False, "max_iter": 100_000}
    solver.setup(csc_matrix(np.triu(Q)), q, csc_matrix(A), low, b, **options)
    solver.solve()


def _daqp(Q: Any, q: Any, A: Any, b: Any, tol: float) -> None:
    import daqp

    sense = np.zeros(len(b), dtype=np.int32)
    daqp.solve(Q, q, np.ascontiguousarray(A), b, np.full(len(b), -1e30), sense)


def calls(library: str, size: int, repeat: int = 200) -> dict[str, Any]:
    """Seconds of ``|x|^2 + |y|^2`` and of its gradient in y, called as the solver calls them; best of five rounds."""
    engine = {"autograd": Engine, "torch": Torch, "jax": Jax}[library]()
    if library == "jax":
        engine.jax.config.update("jax_enable_x64", True)

    def square(x: Any, y: Any, data: Any) -> Any:
        return (y**2).sum() + (x**2).sum()

    x, y = np.zeros(2), np.zeros(size)
    value, gradient = engine.bind(square, None), engine.vjp("f", square, None, (1,))
    row: dict[str, Any] = {"library": library, "size": size}
    for name, call in (("value", lambda: value(x, y)), ("gradient", lambda: gradient(x, y, None))):
        call()  # compilers are not charged
        rounds = []
        for _ in range(5):
            began = time.process_time()
            for _ in range(repeat):
                call()
            rounds.append((time.process_time() - began) / repeat)
        row[name] = min(rounds)
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; write gpu.json with ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="numpy", choices=["numpy", "cupy"])
    parser.add_argument("--sizes", default="1000,100000,1000000")
    parser.add_argument("--batches", default="10,100,1000")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    xp = resolve_backend(options.backend)
    speed = bandwidth(xp)
    print(f"bandwidth {speed / 1e9:.1f} GB/s")
    rows = []
    for size in options.sizes.split(","):
        row = per_iteration(xp, int(size), options.iterations)
        row["floor"] = row["bytes"] / speed
        row["floor_here"] = row["bytes"] / bandwidth(xp, int(size))
        rows.append(row)
        print(
            f"{row['size']:9d} variables: {1e6 * row['seconds']:9.0f} us an iteration, "
            f"floor {1e6 * row['floor_here']:9.0f} us, from memory {1e6 * row['floor']:9.0f} us"
        )
    batches = []
    for count in options.batches.split(","):
        found = batch(xp, int(count))
        batches.append(found)
        print("  ".join(f"{k} {v:.4g}" for k, v in found.items()))
    libraries = [name for name in ("autograd", "torch", "jax") if find_spec(name)]
    called = [
        calls(library, size)
        for library in (libraries if options.backend == "numpy" else [])
        for size in (5, 100_000)
    ]
    for row in called:
        value, gradient = (1e6 * row[name] for name in ("value", "gradient"))
        print(
            f"{row['library']:9s}{row['size']:7d}: value {value:.0f} us, gradient {gradient:.0f} us"
        )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {
            "backend": options.backend,
            "environment": environment("osqp", "daqp", "cupy-cuda12x"),
            "bandwidth": speed,
            "per_iteration": rows,
            "batches": batches,
            "calls": called,
        }
        (options.out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
