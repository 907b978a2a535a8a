"""Which assumptions of the method a CVXPY bilevel problem meets, each with a remedy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cvxpy as cp
import numpy as np

from blocc.errors import BloccError, LowerInfeasibleError, UnsupportedModelError

if TYPE_CHECKING:
    from blocc.cvx import BilevelProblem


@dataclass(frozen=True)
class Assumption:
    """One assumption.

    Attributes
    ----------
    name : str
    status : str
        ``holds``, ``fails`` or ``unknown``.
    detail : str
        The expression that decides, or what is known.
    remedy : str
        What to do, or what it costs, where it does not hold.
    """

    name: str
    status: str
    detail: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """All assumptions; prints as a table.

    Attributes
    ----------
    assumptions : tuple of Assumption
    """

    assumptions: tuple[Assumption, ...]

    def __getitem__(self, name: str) -> Assumption:
        for assumption in self.assumptions:
            if assumption.name == name:
                return assumption
        raise KeyError(name)

    def __iter__(self) -> Iterator[Assumption]:
        return iter(self.assumptions)

    def __str__(self) -> str:
        rows = []
        for item in self.assumptions:
            rows.append(f"  {item.status:<8} {item.name:<28} {item.detail}".rstrip())
            if item.remedy and item.status != "holds":
                rows.append(f"  {'':<8} {'':<28} -> {item.remedy}")
        return "\n".join(["assumptions", *rows])


def check_problem(problem: BilevelProblem) -> Check:
    """Check a problem; see :meth:`blocc.cvx.BilevelProblem.check`."""
    parts = [
        Assumption(
            "lower level convex",
            "holds",
            "by CVXPY's rules, for every value of the upper variables",
        ),
        _strongly_convex(problem),
        _jointly_convex(problem),
        _relaxation(problem),
        _coupling(problem),
        _upper_set(problem),
        *_at_start(problem),
    ]
    return Check(tuple(parts))


def _strongly_convex(problem: BilevelProblem) -> Assumption:
    """Strong convexity of a quadratic lower objective, from the Hessian at two points."""
    name = "lower level strongly convex"
    n = problem.n_upper
    x, y = problem._start(), np.clip(np.zeros(problem.n_lower), *(b[n:] for b in problem.bounds))
    if problem.layout.size > 200:
        return Assumption(name, "unknown", "too large to look at the Hessian")
    if all(item.expression.is_affine() for item in problem.lowers):
        return Assumption(
            name,
            "fails",
            "the lower objective is affine",
            "the response can jump; answers are certified, but more starts may pay",
        )
    hessian = np.zeros((problem.n_lower, problem.n_lower))
    base = problem.derivatives(x, y).lower_gradient[n:]
    for k in range(problem.n_lower):
        shifted = y.copy()
        shifted[k] += 1e-5
        hessian[:, k] = (problem.derivatives(x, shifted).lower_gradient[n:] - base) / 1e-5
    if not np.all(np.isfinite(hessian)):
        return Assumption(name, "unknown", "no second derivative at the start")
    least = float(np.linalg.eigvalsh(0.5 * (hessian + hessian.T))[0])
    if least > 1e-6:
        return Assumption(name, "holds", f"least eigenvalue {least:.2g} at the start")
    return Assumption(
        name,
        "fails",
        f"least eigenvalue {least:.1g} at the start",
        "several lower answers are possible: the upper level then chooses among them (optimistic)",
    )


def _joint_pieces(problem: BilevelProblem) -> dict[str, object]:
    pieces: dict[str, object] = {}
    for item in problem.lowers:
        pieces["lower objective"] = item.expression
        pieces.update(item.constraints)
    return pieces


def _jointly_convex(problem: BilevelProblem) -> Assumption:
    for name, piece in _joint_pieces(problem).items():
        if not piece.is_dcp():  # type: ignore[attr-defined]
            return Assumption(
                "lower level jointly convex",
                "fails",
                f"{name}: {piece}",
                "v need not be convex in x: no convex-concave steps, local methods only",
            )
    return Assumption("lower level jointly convex", "holds", "so v is convex in x")


def _relaxation(problem: BilevelProblem) -> Assumption:
    try:
        bound = problem.relaxation().bound
    except UnsupportedModelError as error:
        return Assumption("relaxation convex", "fails", str(error), "there is no proven bound")
    except LowerInfeasibleError:
        return Assumption(
            "relaxation convex",
            "fails",
            "no (x, y) satisfies all constraints",
            "the problem is infeasible: check the signs of the constraints",
        )
    except BloccError:
        return Assumption(
            "relaxation convex",
            "unknown",
            "convex, but unbounded or not solved",
            "bounds on the variables would give a proven bound",
        )
    assert bound is not None
    return Assumption("relaxation convex", "holds", f"proven bound {problem.sign * bound:.6g}")


def _coupling(problem: BilevelProblem) -> Assumption:
    if not problem._coupling:
        return Assumption("upper constraints free of y", "holds")
    return Assumption(
        "upper constraints free of y",
        "fails",
        ", ".join(problem._coupling),
        "taken in the optimistic sense; the certificate shows whether the lower level's own answer "
        "satisfies them (response_violation)",
    )


def _upper_set(problem: BilevelProblem) -> Assumption:
    lower, upper = (bound[: problem.n_upper] for bound in problem.bounds)
    if np.all(np.isfinite(lower)) and np.all(np.isfinite(upper)):
        return Assumption("upper variables bounded", "holds")
    return Assumption(
        "upper variables bounded",
        "fails" if not problem._alone else "unknown",
        "not all upper variables have bounds",
        "bounds help the search for starts, and global_=True needs them",
    )


def _at_start(problem: BilevelProblem) -> list[Assumption]:
    x = problem._start()
    try:
        problem.lower(x)
    except BloccError as error:
        return [
            Assumption(
                "lower level solvable at start",
                "fails",
                str(error),
                "the method looks for a point where it is; set x.value to help it",
            )
        ]
    return [
        Assumption("lower level solvable at start", "holds"),
        _slater(problem, x),
    ]


def _slater(problem: BilevelProblem, x: np.ndarray) -> Assumption:
    """Largest margin by which all inequalities can hold at x together."""
    name = "Slater point at start"
    margin = cp.Variable()
    constraints: list[object] = [margin <= 1.0]
    for variable, value in zip(
        problem.upper_layout.variables, problem.upper_layout.unpack(x), strict=True
    ):
        constraints.append(variable == value)
    for item in problem.lowers:
        for constraint in item.all_constraints.values():
            if isinstance(constraint, cp.constraints.Inequality):
                constraints.append(constraint.expr <= -margin)
            else:
                constraints.append(constraint)
    saved = {v.id: v.value for v in problem.layout.variables}
    question = cp.Problem(cp.Maximize(margin), constraints)
    try:
        if not question.is_dcp():
            return Assumption(
                name, "unknown", "the constraints are not jointly convex by CVXPY's rules"
            )
        value = float(question.solve(solver="CLARABEL"))
    except cp.error.SolverError:
        return Assumption(name, "unknown", "the solver failed")
    finally:
        for variable in problem.layout.variables:
            variable.save_value(saved[variable.id])
    if value > 1e-7:
        return Assumption(name, "holds", f"margin {value:.2g}")
    return Assumption(
        name,
        "fails",
        f"margin {value:.1g}",
        "multipliers need not be bounded there: start elsewhere, or loosen the constraints a little",
    )


def contradiction(constraints: Mapping[str, Any]) -> list[str]:
    """Names of constraints that no point satisfies together, by a solver's proof; [] where there is no proof.

    Parameters
    ----------
    constraints : dict of cvxpy constraints
        Bounds and attributes of variables count only where they are among them. Those that are not convex by
        CVXPY's rules are left out, which keeps a proof valid.
    """
    from blocc.cvx import on_plain_variables

    names = [name for name, constraint in constraints.items() if constraint.is_dcp()]
    copies = dict(zip(names, on_plain_variables([constraints[k] for k in names]), strict=True))

    def infeasible(some: list[str]) -> bool:
        problem = cp.Problem(cp.Minimize(0.0), [copies[name] for name in some])
        try:
            with (
                warnings.catch_warnings()
            ):  # "may be inaccurate" is no proof, and not counted as one
                warnings.simplefilter("ignore", UserWarning)
                problem.solve(solver=cp.CLARABEL)
        except cp.error.SolverError:
            return False
        return bool(problem.status == cp.INFEASIBLE)

    if not names or not infeasible(names):
        return []
    for name in list(names):  # what can go without losing the contradiction is no part of it
        rest = [other for other in names if other != name]
        if rest and infeasible(rest):
            names = rest
    return names
