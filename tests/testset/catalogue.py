"""The catalogue of bilevel test problems: from expressions to problems, and back to a verdict.

The catalogue is not part of the repository: it lies in ``$BLOCC_SHARED/testset/problems.json`` (default ``../shared``
beside the checkout). Expressions use ``x[i]``, ``y[i]`` and ``np``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine.wraps import nonneg_wrap, psd_wrap
from scipy.optimize import linprog, minimize

import blocc.cvx

ROOT = Path(__file__).resolve().parents[2]


def path() -> Path:
    """Where the catalogue should be."""
    shared = os.environ.get("BLOCC_SHARED", str(ROOT.parent / "shared"))
    return Path(shared) / "testset" / "problems.json"


def available() -> bool:
    return path().exists()


def problems() -> list[dict[str, Any]]:
    return list(json.loads(path().read_text())["problems"])


# ------------------------------------------------------------------------------------- plain callables
@dataclass(frozen=True)
class Callables:
    """A catalogue entry as NumPy functions of flat vectors; each takes real or complex arrays."""

    entry: dict[str, Any]
    F: Callable[[Any, Any], Any]
    f: Callable[[Any, Any], Any]
    G: Callable[[Any, Any], Any]
    H: Callable[[Any, Any], Any]
    g: Callable[[Any, Any], Any]
    h: Callable[[Any, Any], Any]


def callables(entry: dict[str, Any]) -> Callables:
    def scalar(source: str) -> Callable[[Any, Any], Any]:
        return eval(f"lambda x, y: {source}", {"np": np})

    def vector(sources: list[str]) -> Callable[[Any, Any], Any]:
        body = ", ".join(sources)
        function = eval(f"lambda x, y: [{body}]", {"np": np})
        return lambda x, y: np.array(function(x, y))

    return Callables(
        entry,
        scalar(entry["F"]),
        scalar(entry["f"]),
        *(vector(entry[k]) for k in ("G", "H", "g", "h")),
    )


def bounds(entry: dict[str, Any], level: str) -> tuple[np.ndarray, np.ndarray]:
    def fill(values: list[Any], missing: float) -> np.ndarray:
        return np.array([missing if value is None else float(value) for value in values])

    return fill(entry[f"{level}_lb"], -np.inf), fill(entry[f"{level}_ub"], np.inf)


# -------------------------------------------------------------------------------------------- to CVXPY
class Polynomial:
    """A polynomial in generators: x, y, and functions of x alone (reciprocals, exponentials)."""

    def __init__(self, terms: dict[tuple[int, ...], float]) -> None:
        self.terms = {k: c for k, c in terms.items() if c != 0}

    @staticmethod
    def generator(index: int) -> Polynomial:
        return Polynomial({(index,): 1.0})

    @staticmethod
    def of(value: Any) -> Polynomial:
        return value if isinstance(value, Polynomial) else Polynomial({(): float(value)})

    def __add__(self, other: Any) -> Polynomial:
        total = dict(self.terms)
        for key, value in Polynomial.of(other).terms.items():
            total[key] = total.get(key, 0.0) + value
        return Polynomial(total)

    __radd__ = __add__

    def __neg__(self) -> Polynomial:
        return Polynomial({k: -c for k, c in self.terms.items()})

    def __sub__(self, other: Any) -> Polynomial:
        return self + -Polynomial.of(other)

    def __rsub__(self, other: Any) -> Polynomial:
        return Polynomial.of(other) + -self

    def __mul__(self, other: Any) -> Polynomial:
        total: dict[tuple[int, ...], float] = {}
        for a, ca in self.terms.items():
            for b, cb in Polynomial.of(other).terms.items():
                key = tuple(sorted(a + b))
                total[key] = total.get(key, 0.0) + ca * cb
        return Polynomial(total)

    __rmul__ = __mul__

    def __pow__(self, exponent: int) -> Polynomial:
        result = Polynomial.of(1.0)
        for _ in range(exponent):
            result = result * self
        return result

    def __truediv__(self, other: Any) -> Polynomial:
        if isinstance(other, Polynomial):
            return self * other.function("reciprocal")
        return self * (1.0 / other)

    def __rtruediv__(self, other: Any) -> Polynomial:
        return Polynomial.of(other) / self

    def function(self, name: str) -> Polynomial:
        raise TypeError("a function of a polynomial, outside a symbolic context")


class _NotPolynomial(Exception):
    pass


class _Symbols:
    """Evaluates a source expression as a polynomial, and turns polynomials into CVXPY expressions."""

    def __init__(self, x: cp.Variable, y: cp.Variable) -> None:
        self.nx, self.ny = x.size, y.size
        self.atoms: list[Any] = [*(x[i] for i in range(x.size)), *(y[i] for i in range(y.size))]
        self.y = y

    def parse(self, source: str) -> Polynomial:
        symbols = self

        class Symbol(Polynomial):
            pass

        def function(argument: Polynomial, name: str) -> Polynomial:
            argument = Polynomial.of(argument)
            if any(symbols.is_lower(i) for key in argument.terms for i in key):
                raise _NotPolynomial(name)
            inner = symbols.expression(argument)
            symbols.atoms.append(cp.exp(inner) if name == "exp" else 1 / inner)
            return Polynomial.generator(len(symbols.atoms) - 1)

        def refuse(*_: Any) -> Any:
            raise _NotPolynomial

        Polynomial.function = function  # type: ignore[method-assign]
        fake = SimpleNamespace(
            exp=lambda p: function(p, "exp"), log=refuse, cos=refuse, sqrt=refuse
        )
        x = [Polynomial.generator(i) for i in range(self.nx)]
        y = [Polynomial.generator(self.nx + i) for i in range(self.ny)]
        try:
            return Polynomial.of(eval(source, {"np": fake, "x": x, "y": y}))
        except TypeError as error:
            raise _NotPolynomial from error

    def is_lower(self, index: int) -> bool:
        return self.nx <= index < self.nx + self.ny

    def monomial(self, key: tuple[int, ...]) -> Any:
        expression: Any = None
        for index in sorted(set(key)):
            power = key.count(index)
            factor = self.atoms[index] if power == 1 else self.atoms[index] ** power
            expression = factor if expression is None else expression * factor
        return expression

    def expression(self, polynomial: Polynomial) -> Any:
        """Sum of monomials."""
        total: Any = cp.Constant(polynomial.terms.get((), 0.0))
        for key, value in polynomial.terms.items():
            if key:
                total = total + value * self.monomial(key)
        return total

    def convex_in_y(self, polynomial: Polynomial) -> Any:
        """The polynomial with its part of degree two in y as a quadratic form (degree three and up: refused)."""
        by_y: dict[tuple[int, ...], dict[tuple[int, ...], float]] = {}
        for key, value in polynomial.terms.items():
            lower = tuple(i for i in key if self.is_lower(i))
            rest = tuple(i for i in key if not self.is_lower(i))
            by_y.setdefault(lower, {})[rest] = value
        if any(len(key) > 2 for key in by_y):
            raise _NotPolynomial
        total: Any = cp.Constant(0.0)
        quadratic = {k: Polynomial(c) for k, c in by_y.items() if len(k) == 2}
        constant = all(set(p.terms) <= {()} for p in quadratic.values())
        if quadratic and constant:
            Q = np.zeros((self.ny, self.ny))
            for (i, j), p in quadratic.items():
                Q[i - self.nx, j - self.nx] += p.terms.get((), 0.0) / 2
                Q[j - self.nx, i - self.nx] += p.terms.get((), 0.0) / 2
            if np.linalg.eigvalsh(Q)[0] < -1e-12:
                raise _NotPolynomial
            total = total + cp.quad_form(self.y, psd_wrap(cp.Constant(Q)))
        elif quadratic:
            if any(i != j for i, j in quadratic):
                raise _NotPolynomial
            for (i, _), p in quadratic.items():
                total = total + nonneg_wrap(self.expression(p)) * cp.square(self.atoms[i])
        for key, terms in by_y.items():
            coefficient = self.expression(Polynomial(terms))
            if len(key) == 1:
                total = total + coefficient * self.atoms[key[0]]
            elif not key:
                total = total + coefficient
        return total

    def jointly_convex(self, polynomial: Polynomial) -> Any:
        """A convex quadratic in (x, y) as a quadratic form, None if it is not one."""
        n = self.nx + self.ny
        keys = [k for k in polynomial.terms if k]
        if any(len(k) > 2 or max(k) >= n for k in keys) or not any(len(k) == 2 for k in keys):
            return None
        Q, q = np.zeros((n, n)), np.zeros(n)
        for key in keys:
            value = polynomial.terms[key]
            if len(key) == 1:
                q[key[0]] += value
            else:
                Q[key[0], key[1]] += value / 2
                Q[key[1], key[0]] += value / 2
        if np.linalg.eigvalsh(Q)[0] < -1e-12:
            return None
        z = cp.hstack(self.atoms[:n])
        return cp.quad_form(z, psd_wrap(cp.Constant(Q))) + q @ z + polynomial.terms.get((), 0.0)


def cvxpy_parts(entry: dict[str, Any]) -> tuple[cp.Variable, cp.Variable, dict[str, Any]]:
    """Variables, and objectives and constraints of both levels as CVXPY expressions.

    ``F`` is a plain callable where CVXPY lacks a function (cos).
    """

    def variable(level: str, size: int) -> cp.Variable:
        lower, upper = bounds(entry, level)
        return cp.Variable(size, name=level, bounds=[lower, upper])

    x, y = variable("x", entry["nx"]), variable("y", entry["ny"])
    symbols = _Symbols(x, y)
    namespace = {"np": SimpleNamespace(exp=cp.exp, log=cp.log, sqrt=cp.sqrt), "x": x, "y": y}
    fixed = cp.Parameter(entry["nx"], value=np.ones(entry["nx"]))

    def direct(source: str) -> Any:
        return eval(source, dict(namespace))

    def lower_convex(source: str) -> Any:
        try:
            if eval(source, dict(namespace, x=fixed)).is_dcp():
                return direct(source)
        except (AttributeError, NotImplementedError, ValueError):
            pass
        try:
            return symbols.convex_in_y(symbols.parse(source))
        except _NotPolynomial:
            return direct(source)

    def upper_expression(source: str) -> Any:
        expression = direct(source)
        if expression.is_dcp():
            return expression
        try:
            convex = symbols.jointly_convex(symbols.parse(source))
        except _NotPolynomial:
            convex = None
        return expression if convex is None else convex

    parts: dict[str, Any] = {
        "f": lower_convex(entry["f"]),
        "lower": {f"g{i}": lower_convex(s) <= 0 for i, s in enumerate(entry["g"])}
        | {f"h{i}": lower_convex(s) == 0 for i, s in enumerate(entry["h"])},
        "upper": {f"G{i}": upper_expression(s) <= 0 for i, s in enumerate(entry["G"])}
        | {f"H{i}": direct(s) == 0 for i, s in enumerate(entry["H"])},
    }
    try:
        parts["F"] = upper_expression(entry["F"])
    except AttributeError:
        parts["F"] = callables(entry).F
    return x, y, parts


def to_bilevel_problem(entry: dict[str, Any]) -> blocc.cvx.BilevelProblem:
    """Write a catalogue entry in CVXPY (all 101 can be).

    Raises
    ------
    blocc.errors.UnsupportedModelError
        If the lower level cannot be written so that CVXPY sees that it is convex.
    """
    x, _, parts = cvxpy_parts(entry)
    lower = blocc.cvx.LowerProblem(cp.Minimize(parts["f"]), parts["lower"], given=[x])
    F = parts["F"]
    objective = cp.Minimize(F) if isinstance(F, cp.Expression) else F
    return blocc.cvx.BilevelProblem(objective, lower, parts["upper"])


# --------------------------------------------------------------------------------------------- verdict
@dataclass(frozen=True)
class Verdict:
    """How an answer fares, measured without the library.

    ``kind`` is ``optimum``, ``local`` (a listed local solution), ``other`` (bilevel feasible, another value) or
    ``infeasible``; ``below`` says that F is under the known optimum by more than the tolerance.
    """

    kind: str
    F: float
    gap: float
    violation: float
    below: bool


def lower_value(entry: dict[str, Any], x: np.ndarray, y: np.ndarray) -> float:
    """v(x) by SciPy: HiGHS for linear lower levels, SLSQP from several points otherwise."""
    problem = callables(entry)
    lb, ub = bounds(entry, "y")
    if entry["ll_objective"] == "linear":
        zero = np.zeros(entry["ny"])
        eye = np.eye(entry["ny"])
        c0 = problem.f(x, zero)
        c = np.array([problem.f(x, e) - c0 for e in eye])
        rows: dict[str, Any] = {}
        for name, function in (("ub", problem.g), ("eq", problem.h)):
            base = function(x, zero)
            if len(base):
                rows[f"A_{name}"] = np.array([function(x, e) - base for e in eye]).T
                rows[f"b_{name}"] = -base
        point = 1.0 + np.random.default_rng(1).random(entry["ny"])
        affine = all(
            np.allclose(function(x, 2 * point) + function(x, zero), 2 * function(x, point))
            for function in (problem.g, problem.h)
        )
        if affine:
            answer = linprog(c, **rows, bounds=list(zip(lb, ub, strict=True)), method="highs-ds")
            if answer.status == 0:
                return float(answer.fun + c0)
    best = np.inf
    constraints = []
    if entry["g"]:
        constraints.append({"type": "ineq", "fun": lambda u: -problem.g(x, u)})
    if entry["h"]:
        constraints.append({"type": "eq", "fun": lambda u: problem.h(x, u)})
    generator = np.random.default_rng(0)
    for k in range(3):
        start = y + (0.0, 1e-3, 0.1)[k] * generator.normal(size=len(y))
        answer = minimize(
            lambda u: problem.f(x, u),
            np.clip(start, lb, ub),
            method="SLSQP",
            bounds=list(zip(lb, ub, strict=True)),
            constraints=constraints,
            options={"ftol": 1e-15, "maxiter": 500},
        )
        violation = max(
            np.max(problem.g(x, answer.x), initial=0.0),
            np.max(np.abs(problem.h(x, answer.x)), initial=0.0),
        )
        if violation <= 1e-9 and np.isfinite(answer.fun):
            best = min(best, float(answer.fun))
    return best


def score(entry: dict[str, Any], x: Any, y: Any, tol: float = 1e-4) -> Verdict:
    """Compare an answer with the catalogue: F to ``tol`` relative, gap and violation at most 1e-6."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    problem = callables(entry)
    F = float(problem.F(x, y))
    parts = [problem.g(x, y), problem.G(x, y), np.abs(problem.h(x, y)), np.abs(problem.H(x, y))]
    for level, point in (("x", x), ("y", y)):
        lb, ub = bounds(entry, level)
        parts += [lb - point, point - ub]
    violation = max(float(np.max(part, initial=0.0)) for part in parts)
    violation /= 1.0 + float(max(np.max(np.abs(x)), np.max(np.abs(y))))
    f = float(problem.f(x, y))
    gap = (f - lower_value(entry, x, y)) / (1.0 + abs(f))
    target = entry["F_star"]

    def close(value: float) -> bool:
        return abs(F - value) <= tol * (1.0 + abs(value))

    feasible = gap <= 1e-6 and violation <= 1e-6
    if not feasible:
        kind = "infeasible"
    elif close(target):
        kind = "optimum"
    elif any(close(other["F"]) for other in entry["other_local_solutions"]):
        kind = "local"
    else:
        kind = "other"
    return Verdict(kind, F, gap, violation, feasible and target - tol * (1.0 + abs(target)) > F)
