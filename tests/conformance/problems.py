"""One tiny bilevel program with coupled constraints, written once for every array library and device."""

from __future__ import annotations

from typing import Any

import blocc
from blocc import maxmin
from blocc.arrays import namespace

INPUTS: dict[str, Any] = {
    "a": [1.0],
    "b": [1.5, 0.2, -0.4],
    "B": [[1.0], [0.2], [0.5]],
    "q": [2.0, 1.0, 3.0],
    "A": [[1.0, 1.0, 0.3]],
    "C": [[0.5]],
    "d": [0.4],
    "E": [[1.0, -0.5, 0.2]],
    "D": [[0.2]],
    "e": [0.1],
}
X0, Y0 = [-0.5], [0.0, 0.0, 0.0]


def data(xp: Any, device: Any = None, dtype: str = "float64") -> dict[str, Any]:
    """The coefficients as arrays of a library, on a device."""
    kind = getattr(xp, dtype)
    return {key: xp.asarray(value, dtype=kind, device=device) for key, value in INPUTS.items()}


f = blocc.Function(
    lambda x, y, d: (
        0.5 * namespace(x).sum((x - d["a"]) ** 2) + 0.5 * namespace(y).sum((y - d["b"]) ** 2)
    ),
    lambda x, y, d: (x - d["a"], y - d["b"]),
)
g = blocc.Function(
    lambda x, y, d: namespace(y).sum(0.5 * d["q"] * y * y - (d["B"] @ x) * y),
    lambda x, y, d: (-(d["B"].T @ y), d["q"] * y - d["B"] @ x),
)
c = blocc.Function(
    lambda x, y, d: d["A"] @ y + d["C"] @ x - d["d"],
    lambda x, y, w, d: (d["C"].T @ w, d["A"].T @ w),
)
h = blocc.Function(
    lambda x, y, d: d["E"] @ y + d["D"] @ x - d["e"],
    lambda x, y, w, d: (d["D"].T @ w, d["E"].T @ w),
)


def start(xp: Any, device: Any = None, dtype: str = "float64") -> tuple[Any, Any]:
    """x0 and y0 on a device."""
    kind = getattr(xp, dtype)
    return (
        xp.asarray(X0, dtype=kind, device=device),
        xp.asarray(Y0, dtype=kind, device=device),
    )


def minimize(xp: Any, device: Any = None, dtype: str = "float64", **options: Any) -> blocc.Result:
    """blocc.minimize of the program on one library and device."""
    x0, y0 = start(xp, device, dtype)
    sets = {"x_set": blocc.Box(-2.0, 2.0), "y_set": blocc.Box(-5.0, 5.0)}
    return blocc.minimize(f, g, c, x0, y0, h=h, data=data(xp, device, dtype), **{**sets, **options})


def saddle_problem(xp: Any, device: Any = None, dtype: str = "float64", y_set: Any = None):
    """The lower level at x0 as a saddle problem, and a starting y."""
    x0, y0 = start(xp, device, dtype)
    model = blocc.FunctionalModel(f, g, c, x0, y0, h=h, y_set=y_set, data=data(xp, device, dtype))
    return model.saddle_problem(x0 + 1.2, None), y0


def arrays_of(value: Any) -> list[Any]:
    """Every array in a (nested) answer."""
    if hasattr(value, "dtype"):
        return [value]
    if isinstance(value, dict):
        return [array for item in value.values() for array in arrays_of(item)]
    if isinstance(value, (tuple, list)):
        return [array for item in value for array in arrays_of(item)]
    if isinstance(value, (blocc.Saddle, maxmin.SaddlePoint, maxmin.Steps)):
        return arrays_of(list(vars(value).values()))
    return []
