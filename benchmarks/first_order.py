"""MaxMin's production form against QP solvers on sparse coupled lower levels of 10^3 to 10^6 variables.

    python benchmarks/first_order.py [--families chain,blocks,flow] [--sizes 1000,10000] [--solvers blocc,osqp]
                                     [--targets 1e-4,1e-6] [--limit 60] [--seed 0] [--out DIR]

Every problem is ``min 1/2 y'Qy + q'y + w'(y log y + (1 - y) log(1 - y))`` over ``lower <= y <= upper``, ``A y <= b``,
``E y = e``, with entropies (w > 0) in the last family alone:

* *chain*: neighbours are coupled by the objective and by ``y_i + y_(i+1) <= d_i``; factorises without fill-in.
* *blocks*: 10 shares a block that sum to 1, and a capacity for every 20 shares, drawn at random; separable objective.
* *flow*: many origins route trips through one grid of streets, their total flow on each street has a capacity, and
  demand falls with its shadow cost (quadratic in the shares): the transit lower level with linear demand.
* *entropy*: the same with logit demand, shares between 1e-6 and 1 - 1e-6: the transit lower level as it is. QP solvers
  cannot take it; conic ones get two exponential cones a share.

A solver counts as done when **our** measure of its answer, :func:`residual`, meets the target: the largest relative
error of the KKT system in the projected form that needs the row multipliers alone. As every solver stops on a test of
its own, each is run at falling tolerances until that measure is met, and only the last run is counted, setup included.
Every solver runs in a process of its own, one thread, stopped at the limit. Memory is the process's peak above what it
held with the problem built.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sparse

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

Array = Any


@dataclass(frozen=True)
class Problem:
    """``min 1/2 y'Qy + q'y`` over a box with inequality rows A, b and equality rows E, e; and entropies, weighted."""

    Q: Any
    q: Array
    A: Any
    b: Array
    E: Any
    e: Array
    lower: Array
    upper: Array
    entropy: Array | None = None

    @property
    def rows(self) -> Any:
        return sparse.vstack([self.A, self.E], format="csr")

    @cached_property
    def curved(self) -> Array:
        """Entries with an entropy."""
        return np.flatnonzero([] if self.entropy is None else self.entropy)

    def value(self, y: Array) -> Any:
        total = 0.5 * (y @ (self.Q @ y)) + self.q @ y
        if self.entropy is not None:
            s, w = y[self.curved], self.entropy[self.curved]
            total = total + w @ (s * np.log(s) + (1.0 - s) * np.log1p(-s))
        return total

    def slope(self, y: Array) -> Array:
        slope = self.Q @ y + self.q
        if self.entropy is not None:
            s, w = y[self.curved], self.entropy[self.curved]
            slope[self.curved] += w * (np.log(s) - np.log1p(-s))
        return slope


def chain(n: int, seed: int) -> Problem:
    random = np.random.default_rng(seed)
    D = sparse.diags_array([np.ones(n - 1), -np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n))
    S = sparse.diags_array([np.ones(n - 1), np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n))
    return Problem(
        Q=sparse.csr_array(sparse.eye_array(n) + D.T @ D),
        q=random.normal(size=n),
        A=S.tocsr(),
        b=random.uniform(0.2, 1.5, n - 1) - 0.8,
        E=sparse.csr_array((0, n)),
        e=np.zeros(0),
        lower=np.full(n, -10.0),
        upper=np.full(n, 10.0),
    )


def blocks(n: int, seed: int) -> Problem:
    random = np.random.default_rng(seed)
    size, picked = 10, 20
    groups, rows = n // size, n // picked
    n = groups * size
    E = sparse.csr_array((np.ones(n), (np.arange(n) // size, np.arange(n))), shape=(groups, n))
    members = random.permutation(n)[: rows * picked]
    weights = random.uniform(0.5, 2.0, rows * picked)
    A = sparse.csr_array((weights, (np.arange(rows * picked) // picked, members)), shape=(rows, n))
    return Problem(
        Q=sparse.diags_array(10.0 ** random.uniform(-1, 1, n)).tocsr(),
        q=random.normal(size=n),
        A=A,
        b=A @ np.full(n, 1.0 / size) * random.uniform(0.9, 1.1, rows) + 0.05,
        E=E,
        e=np.ones(groups),
        lower=np.zeros(n),
        upper=np.full(n, np.inf),
    )


def flow(n: int, seed: int, entropic: bool = False) -> Problem:
    """Side of the grid and number of origins grow together until flows and shares make n variables."""
    random = np.random.default_rng(seed)
    side = max(3, round((n / 5) ** 0.25))
    nodes = side * side
    index = np.arange(nodes).reshape(side, side)
    pairs = [(index[:, :-1], index[:, 1:]), (index[:-1], index[1:])]
    tail = np.concatenate([a.ravel() for a, b in pairs] + [b.ravel() for a, b in pairs])
    head = np.concatenate([b.ravel() for a, b in pairs] + [a.ravel() for a, b in pairs])
    links = len(tail)
    origins = np.sort(random.permutation(nodes)[: max(1, min(nodes, round(n / (links + nodes))))])
    k = len(origins)
    time_on = random.uniform(0.5, 1.5, links)
    trips = random.uniform(0.0, 2.0, (k, nodes)) / nodes
    trips[np.arange(k), origins] = 0.0
    value = random.uniform(2.0, 2.0 * side, (k, nodes))
    incidence = sparse.csr_array(
        (
            np.concatenate([np.ones(links), -np.ones(links)]),
            (np.concatenate([head, tail]), np.tile(np.arange(links), 2)),
        ),
        shape=(nodes, links),
    )
    width = links + nodes
    balances = []
    for r in range(k):  # flow in minus flow out is what is served, at all nodes but the origin
        balance = sparse.hstack([incidence, -sparse.diags_array(trips[r])], format="csr")
        balances.append(balance[np.arange(nodes) != origins[r]])
    A = sparse.hstack(
        [sparse.hstack([sparse.eye_array(links), sparse.csr_array((links, nodes))])] * k,
        format="csr",
    )
    slope = np.concatenate([np.zeros((k, links)), trips * 2.0], axis=1).ravel()
    linear = np.concatenate([np.tile(time_on, (k, 1)), -trips * value], axis=1).ravel()
    upper = np.concatenate(
        [np.tile(trips.sum(axis=1)[:, None], (1, links)), np.ones((k, nodes))], axis=1
    ).ravel()
    total = float(trips.sum())
    capacity = random.uniform(0.3, 1.2, links) * total * 0.7 * side / links
    entropy, lower = None, np.zeros(width * k)
    if entropic:
        # worth about as much as the way to it takes, so that shares lie between .05 and .95 without capacities
        row, column = np.divmod(np.arange(nodes), side)
        away = np.abs(row[origins][:, None] - row) + np.abs(column[origins][:, None] - column)
        value = away + random.uniform(-3.0, 3.0, (k, nodes))
        linear = np.concatenate([np.tile(time_on, (k, 1)), -trips * value], axis=1).ravel()
        entropy, slope = 0.5 * slope, 0.0 * slope
        shares = entropy > 0
        lower[shares], upper[shares] = 1e-6, 1.0 - 1e-6
    return Problem(
        Q=sparse.diags_array(slope).tocsr(),
        q=linear,
        A=A,
        b=capacity,
        E=sparse.block_diag(balances, format="csr"),
        e=np.zeros(k * (nodes - 1)),
        lower=lower,
        upper=upper,
        entropy=entropy,
    )


FAMILIES: dict[str, Callable[[int, int], Problem]] = {
    "chain": chain,
    "blocks": blocks,
    "flow": flow,
    "entropy": partial(flow, entropic=True),
}


def saddle(problem: Problem) -> Any:
    """As :mod:`blocc.maxmin` takes it: callables that multiply by the matrices."""
    from blocc.maxmin import Constraint, SaddleProblem
    from blocc.sets import Box

    A, E = problem.A, problem.E
    A_T, E_T = A.T.tocsr(), E.T.tocsr()
    constraints = {}
    if len(problem.b):
        constraints["c"] = Constraint(lambda y: A @ y - problem.b, lambda y, dual: A_T @ dual)
    if len(problem.e):
        constraints["h"] = Constraint(lambda y: E @ y - problem.e, lambda y, dual: E_T @ dual, True)
    return SaddleProblem(
        problem.value,
        problem.slope,
        constraints,
        Box(problem.lower, problem.upper),
    )


def residual(problem: Problem, y: Array, dual: Array) -> float:
    """One measure for every solver's answer, written out here; ``dual`` belongs to the rows A, then E.

    The largest of: rows violated, and their complementarity, as ``dual - Proj(dual + value)``, relative to
    ``1 + max|y|``; the gradient of the Lagrangian projected on the box, relative to ``1 + max|dual|``; the gap between
    the objective and the dual function along bounded directions, relative to ``1 + |objective|``. The answer is
    projected on the box and the cone first, so that nobody is charged for a bound missed by rounding.
    """
    m = len(problem.b)
    y = np.clip(y, problem.lower, problem.upper)
    dual = np.concatenate([np.maximum(dual[:m], 0.0), dual[m:]])
    values = problem.rows @ y - np.concatenate([problem.b, problem.e])
    natural = np.concatenate([dual[:m] - np.maximum(dual[:m] + values[:m], 0.0), values[m:]])
    gradient = problem.slope(y) + problem.rows.T @ dual
    projected = y - np.clip(y - gradient, problem.lower, problem.upper)
    bound = np.where(gradient > 0, problem.lower, problem.upper)
    bounded = np.isfinite(bound)
    gap = float(gradient[bounded] @ (y - bound)[bounded]) - float(dual @ values)
    objective = float(problem.value(y))
    return max(
        float(np.abs(natural).max(initial=0.0)) / (1 + float(np.abs(y).max())),
        float(np.abs(projected).max()) / (1 + float(np.abs(dual).max(initial=0.0))),
        abs(gap) / (1 + abs(objective)),
    )


Answer = tuple[Array, Array, int]


def with_blocc(problem: Problem, tolerance: float) -> Answer:
    from blocc.maxmin import solve

    start = np.clip(np.zeros(len(problem.q)), problem.lower, problem.upper)
    found = solve(saddle(problem), start, tol=tolerance, max_iterations=10**6)
    duals = [found.duals[k] for k in ("c", "h") if k in found.duals]
    return found.y, np.concatenate(duals), found.iterations


def with_osqp(problem: Problem, tolerance: float) -> Answer:
    import osqp

    solver = osqp.OSQP()
    n, m = len(problem.q), problem.rows.shape[0]
    solver.setup(
        sparse.csc_matrix(sparse.triu(problem.Q)),
        problem.q,
        sparse.csc_matrix(sparse.vstack([problem.rows, sparse.eye_array(n)])),
        np.concatenate([np.full(len(problem.b), -np.inf), problem.e, problem.lower]),
        np.concatenate([problem.b, problem.e, problem.upper]),
        eps_abs=tolerance,
        eps_rel=tolerance,
        max_iter=10**7,
        verbose=False,
    )
    found = solver.solve()
    return found.x, found.y[:m], found.info.iter


def _cones(problem: Problem) -> tuple[Any, Array]:
    """Rows with equalities first, then inequalities, then finite bounds: ``M y + s = v``."""
    n = len(problem.q)
    low, high = np.isfinite(problem.lower), np.isfinite(problem.upper)
    eye = sparse.eye_array(n, format="csr")
    M = sparse.vstack([problem.E, problem.A, eye[high], -eye[low]], format="csc")
    v = [problem.e, problem.b, problem.upper[high], -problem.lower[low]]
    return sparse.csc_matrix(M), np.concatenate(v)


def _conic(problem: Problem) -> tuple[Any, Array, Any, Array, int]:
    """P, c, M, v of a conic solver, and its number of exponential cones: two for every entropy, below the other rows.

    An epigraph variable for each, objective ``w't``: ``(-t, s, 1)`` in the cone says ``s log s <= t``.
    """
    M, v = _cones(problem)
    P, c = sparse.csc_matrix(sparse.triu(problem.Q)), problem.q
    where = problem.curved
    n, k = len(c), len(where)
    if not k:
        return P, c, M, v, 0
    triples = 3 * np.arange(2 * k)
    columns = np.concatenate([where, where])
    signs = np.concatenate([-np.ones(k), np.ones(k)])  # s, then 1 - s
    cones = sparse.csc_matrix(
        (
            np.concatenate([np.ones(2 * k), signs]),
            (
                np.concatenate([triples, triples + 1]),
                np.concatenate([n + np.arange(2 * k), columns]),
            ),
        ),
        shape=(6 * k, n + 2 * k),
    )
    right = np.zeros(6 * k)
    right[triples + 2] = 1.0
    right[triples[k:] + 1] = 1.0
    M = sparse.vstack([sparse.hstack([M, sparse.csc_matrix((len(v), 2 * k))]), cones])
    P = sparse.block_diag([P, sparse.csc_matrix((2 * k, 2 * k))], format="csc")
    w = problem.entropy[where]
    return P, np.concatenate([c, w, w]), sparse.csc_matrix(M), np.concatenate([v, right]), 2 * k


def _rows_of(problem: Problem, z: Array) -> Array:
    p, m = len(problem.e), len(problem.b)
    return np.concatenate([z[p : p + m], z[:p]])


def with_clarabel(problem: Problem, tolerance: float) -> Answer:
    import clarabel

    P, c, M, v, exponential = _conic(problem)
    p = len(problem.e)
    cones = [clarabel.ZeroConeT(p)] if p else []
    cones.append(clarabel.NonnegativeConeT(len(v) - p - 3 * exponential))
    cones += [clarabel.ExponentialConeT()] * exponential
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_threads = 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
    found = clarabel.DefaultSolver(P, c, M, v, cones, settings).solve()
    return (
        np.array(found.x)[: len(problem.q)],
        _rows_of(problem, np.array(found.z)),
        found.iterations,
    )


def with_scs(problem: Problem, tolerance: float) -> Answer:
    import scs

    P, c, M, v, exponential = _conic(problem)
    p = len(problem.e)
    solver = scs.SCS(
        {"P": P, "A": M, "b": v, "c": c},
        {"z": p, "l": len(v) - p - 3 * exponential, "ep": exponential},
        eps_abs=tolerance,
        eps_rel=tolerance,
        max_iters=10**7,
        verbose=False,
    )
    found = solver.solve()
    return found["x"][: len(problem.q)], _rows_of(problem, found["y"]), found["info"]["iter"]


def with_piqp(problem: Problem, tolerance: float) -> Answer:
    import piqp

    solver = piqp.SparseSolver()
    solver.settings.eps_abs = solver.settings.eps_rel = tolerance
    solver.settings.eps_duality_gap_abs = solver.settings.eps_duality_gap_rel = tolerance
    solver.setup(
        sparse.csc_matrix(problem.Q),
        problem.q,
        sparse.csc_matrix(problem.E),
        problem.e,
        sparse.csc_matrix(problem.A),
        np.full(len(problem.b), -np.inf),
        problem.b,
        problem.lower,
        problem.upper,
    )
    solver.solve()
    found = solver.result
    dual = np.concatenate([found.z_u, found.y])
    return np.array(found.x), dual, found.info.iter


def with_highs(problem: Problem, tolerance: float) -> Answer:
    import highspy

    rows = sparse.csc_matrix(problem.rows)
    model = highspy.HighsModel()
    lp, inf = model.lp_, highspy.kHighsInf
    lp.num_col_, lp.num_row_ = len(problem.q), rows.shape[0]
    lp.col_cost_ = problem.q
    lp.col_lower_ = np.maximum(problem.lower, -inf)
    lp.col_upper_ = np.minimum(problem.upper, inf)
    lp.row_lower_ = np.concatenate([np.full(len(problem.b), -inf), problem.e])
    lp.row_upper_ = np.concatenate([problem.b, problem.e])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_ = rows.indptr, rows.indices
    lp.a_matrix_.value_ = rows.data
    Q = sparse.csc_matrix(sparse.tril(problem.Q))
    model.hessian_.dim_ = len(problem.q)
    model.hessian_.format_ = highspy.HessianFormat.kTriangular
    model.hessian_.start_, model.hessian_.index_, model.hessian_.value_ = (
        Q.indptr,
        Q.indices,
        Q.data,
    )
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("primal_feasibility_tolerance", max(tolerance, 1e-10))
    solver.setOptionValue("dual_feasibility_tolerance", max(tolerance, 1e-10))
    solver.passModel(model)
    solver.run()
    found = solver.getSolution()
    return np.array(found.col_value), -np.array(found.row_dual), solver.getInfo().qp_iteration_count


def _diagonal(problem: Problem) -> Problem:
    """The same problem with a diagonal objective: ``1/2 |Ry|^2`` becomes ``1/2 |z|^2`` with ``z = Ry`` (chain only)."""
    n = len(problem.q)
    steps = sparse.diags_array(
        [np.ones(n - 1), -np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n)
    ).tocsr()
    more = n - 1
    return Problem(
        Q=sparse.eye_array(n + more, format="csr"),
        q=np.concatenate([problem.q, np.zeros(more)]),
        A=sparse.hstack([problem.A, sparse.csr_array((problem.A.shape[0], more))], format="csr"),
        b=problem.b,
        E=sparse.hstack([steps, -sparse.eye_array(more)], format="csr"),
        e=np.zeros(more),
        lower=np.concatenate([problem.lower, np.full(more, -np.inf)]),
        upper=np.concatenate([problem.upper, np.full(more, np.inf)]),
    )


def with_pdlp(problem: Problem, tolerance: float) -> Answer:
    """PDLP takes diagonal objectives alone: the chain is given to it with a variable more for every difference."""
    from ortools.pdlp import solvers_pb2
    from ortools.pdlp.python import pdlp

    n, m = len(problem.q), problem.rows.shape[0]
    given = problem if problem.Q.nnz <= n else _diagonal(problem)
    program = pdlp.QuadraticProgram()
    program.resize_and_initialize(len(given.q), given.rows.shape[0])
    program.objective_vector = given.q
    program.set_objective_matrix_diagonal(given.Q.diagonal())
    program.constraint_matrix = sparse.csc_matrix(given.rows)
    program.constraint_lower_bounds = np.concatenate([np.full(len(given.b), -np.inf), given.e])
    program.constraint_upper_bounds = np.concatenate([given.b, given.e])
    program.variable_lower_bounds, program.variable_upper_bounds = given.lower, given.upper
    parameters = solvers_pb2.PrimalDualHybridGradientParams()
    criteria = parameters.termination_criteria.simple_optimality_criteria
    criteria.eps_optimal_absolute = criteria.eps_optimal_relative = tolerance
    parameters.num_threads = 1
    found = pdlp.primal_dual_hybrid_gradient(program, parameters)
    return found.primal_solution[:n], -found.dual_solution[:m], found.solve_log.iteration_count


def with_mpax(problem: Problem, tolerance: float) -> Answer:
    """r2HPDHG's sibling for QPs in JAX, compilation included."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import mpax

    given = mpax.create_qp(
        sparse.csr_matrix(problem.Q),
        problem.q,
        sparse.csr_matrix(problem.E),
        problem.e,
        sparse.csr_matrix(-problem.A),
        -problem.b,
        problem.lower,
        problem.upper,
    )
    solver = mpax.raPDHG(eps_abs=tolerance, eps_rel=tolerance, verbose=False)
    found = solver.optimize(given)
    dual = np.asarray(found.dual_solution)
    p = len(problem.e)
    dual = np.concatenate([dual[p:], -dual[:p]])
    return np.asarray(found.primal_solution), dual, int(found.iteration_count)


SOLVERS: dict[str, Callable[[Problem, float], Answer]] = {
    "blocc": with_blocc,
    "osqp": with_osqp,
    "scs": with_scs,
    "pdlp": with_pdlp,
    "mpax": with_mpax,
    "clarabel": with_clarabel,
    "piqp": with_piqp,
    "highs": with_highs,
}
CONIC = ("blocc", "scs", "clarabel")


def _memory() -> float:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(solver: str, problem: Problem, targets: Sequence[float]) -> list[dict[str, Any]]:
    """Runs of one solver in this process: for every target the first tolerance at which our measure meets it."""
    SOLVERS[solver](FAMILIES["blocks"](40, 0), 1e-3)  # imports and compilers, not charged to anyone
    before, rows = _memory(), []
    tolerance = 10.0 * targets[0]
    for target in targets:
        while True:
            began, cpu = time.perf_counter(), time.process_time()
            y, dual, iterations = SOLVERS[solver](problem, tolerance)
            row = {
                "target": target,
                "tolerance": tolerance,
                "seconds": time.perf_counter() - began,
                "cpu_seconds": time.process_time() - cpu,
                "iterations": iterations,
                "residual": residual(problem, y, dual),
                "megabytes": _memory() - before,
            }
            row["solved"] = bool(row["residual"] <= target)
            if row["solved"] or tolerance < 1e-11:
                break
            tolerance /= 10.0
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the table; every (family, size, solver) in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--solvers", default=",".join(SOLVERS))
    parser.add_argument("--targets", default="1e-4,1e-6")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of one process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    targets = [float(t) for t in options.targets.split(",")]
    families, solvers = options.families.split(","), options.solvers.split(",")
    sizes = [int(n) for n in options.sizes.split(",")]
    if options.one:
        measure(solvers[0], FAMILIES[families[0]](sizes[0], options.seed), targets)
        return 0
    rows = []
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    for family in families:
        for size in sizes:
            for solver in [s for s in solvers if family != "entropy" or s in CONIC]:
                command = [sys.executable, __file__, "--one", "--families", family]
                command += ["--sizes", str(size), "--solvers", solver, "--seed", str(options.seed)]
                command += ["--targets", options.targets]
                process = subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=environment,
                    text=True,
                )
                try:
                    output, errors = process.communicate(timeout=options.limit)
                except subprocess.TimeoutExpired:
                    process.kill()
                    output, errors = process.communicate()
                    errors = f"stopped at {options.limit:g} s"
                found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
                for target, row in zip(targets, found + [{}] * len(targets), strict=False):
                    row = row or {"target": target, "solved": False}
                    if not row["solved"]:
                        row["reason"] = (errors.strip().splitlines() or ["not met"])[-1][:100]
                    row = {"family": family, "size": size, "solver": solver, **row}
                    rows.append(row)
                    print(_line(row), flush=True)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "first_order.json").write_text(json.dumps(rows, indent=1) + "\n")
        plot(rows, options.out / "first_order.svg")
    return 0


def _line(row: dict[str, Any]) -> str:
    start = f"{row['family']:7s}{row['size']:9d}  {row['solver']:9s}{row['target']:8.0e}"
    if not row["solved"]:
        return f"{start}  {row['reason']}"
    return (
        f"{start}{row['seconds']:10.3f} s{row['iterations']:8d} iterations"
        f"{row['residual']:10.1e}{row['megabytes']:8.0f} MB"
    )


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Seconds against size, one panel a family and target."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    families = list(dict.fromkeys(row["family"] for row in rows))
    targets = list(dict.fromkeys(row["target"] for row in rows))
    figure, axes = plt.subplots(
        len(targets),
        len(families),
        figsize=(4 * len(families), 3.2 * len(targets)),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for i, target in enumerate(targets):
        for j, family in enumerate(families):
            axis = axes[i][j]
            for solver in SOLVERS:
                points = [
                    (row["size"], row["seconds"])
                    for row in rows
                    if row["solved"]
                    and (row["family"], row["target"], row["solver"]) == (family, target, solver)
                ]
                if points:
                    width = 2.5 if solver == "blocc" else 1.2
                    axis.loglog(
                        *zip(*points, strict=True), marker="o", lw=width, ms=3, label=solver
                    )
            axis.set_title(f"{family}, {target:g}", fontsize=9)
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.supxlabel("variables")
    figure.supylabel("seconds")
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
