"""MaxMin: Algorithm 2 as published and the production form, against CVXPY with Clarabel and against its own claims."""

from __future__ import annotations

import contextlib
import functools

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays

import blocc
from blocc.errors import (
    InvalidInputError,
    LowerInfeasibleError,
    LowerNotSolvedError,
    LowerUnboundedError,
)
from blocc.maxmin import (
    POWERS,
    PROBES,
    Constraint,
    SaddleProblem,
    Steps,
    kkt_residual,
    maxmin,
    residuals,
    solve,
)

PRIMAL, DUAL = 1e-6, 1e-5  # accuracy promised against Clarabel

# The references ask Clarabel for 1e-11; where it stops a little above that, CVXPY warns.
pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")


def affine(matrix, offset, *, equality=False) -> Constraint:
    """``matrix y - offset <= 0`` or ``== 0``."""
    matrix, offset = np.atleast_2d(np.asarray(matrix, float)), np.atleast_1d(offset)
    return Constraint(lambda y: matrix @ y - offset, lambda y, dual: matrix.T @ dual, equality)


def quadratic(Q, q, y_set=None, **blocks) -> SaddleProblem:
    """``1/2 y'Qy + q'y`` subject to (matrix, offset) blocks; the one called h is an equality."""
    Q, q = np.asarray(Q, float), np.asarray(q, float)
    constraints = {k: affine(*v, equality=k == "h") for k, v in blocks.items()}
    return SaddleProblem(
        lambda y: 0.5 * y @ Q @ y + q @ y, lambda y: Q @ y + q, constraints, y_set or blocc.Free()
    )


class QP:
    """A strongly convex quadratic program with inequalities and equalities, and Clarabel's answer to it."""

    def __init__(self, n, m, p, seed, *, spread=0.0, conditioning=1.0):
        random = np.random.default_rng(seed)
        root = random.normal(size=(n, n))
        self.Q, self.q = root @ root.T / n + conditioning * np.eye(n), 3 * random.normal(size=n)
        self.A, self.E = random.normal(size=(m, n)), random.normal(size=(p, n))
        inside = 0.3 * random.normal(size=n)
        rows, columns = (10.0 ** random.uniform(-spread, spread, k) for k in (m, n))
        self.Q, self.q = self.Q * np.outer(columns, columns), self.q * columns
        self.A, self.E = self.A * columns * rows[:, None], self.E * columns
        self.b = self.A @ (inside / columns) + rows * random.uniform(0, 0.5, m)
        self.e = self.E @ (inside / columns)
        self.n = n

    def problem(self, y_set=None) -> SaddleProblem:
        """As the solver sees it."""
        blocks = {"c": (self.A, self.b), "h": (self.E, self.e)}
        return quadratic(self.Q, self.q, y_set, **{k: v for k, v in blocks.items() if len(v[1])})

    def reference(self, y_set=None):
        """(y, duals, value) by CVXPY with Clarabel, or None where it says infeasible."""
        return _reference(self, y_set)


@functools.cache
def _reference(qp: QP, y_set=None):
    y = cp.Variable(qp.n)
    constraints = [qp.A @ y <= qp.b, qp.E @ y == qp.e]
    if isinstance(y_set, blocc.Ball):
        constraints.append(cp.norm(y - y_set.center) <= y_set.radius)
    elif isinstance(y_set, blocc.Simplex):
        constraints += [y >= 0, cp.sum(y) == y_set.total]
    elif y_set is not None:
        constraints += [y >= y_set.lower, y <= y_set.upper]
    objective = 0.5 * cp.quad_form(y, cp.psd_wrap(qp.Q)) + qp.q @ y
    problem = cp.Problem(cp.Minimize(objective), constraints)
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    duals = {"c": constraints[0].dual_value, "h": constraints[1].dual_value}
    return y.value, duals, problem.value


def assert_agrees(found, reference, *, primal=PRIMAL, dual=DUAL):
    y, duals, _ = reference
    np.testing.assert_allclose(found.y, y, atol=primal * (1 + np.abs(y).max()))
    size = 1 + max(np.abs(d).max(initial=0.0) for d in duals.values())
    assert set(found.duals) == {key for key, dual in duals.items() if dual.size}
    for key, expected in duals.items():
        if expected.size == 0:
            continue
        np.testing.assert_allclose(found.duals[key], expected, atol=dual * size)


# ---- Algorithm 2 as published -------------------------------------------------------------------------------------


def literal(problem, y, mu, eta_1, eta_2, T, T_y, accelerated):
    """Algorithm 2 written out from the paper, with one block of inequalities ``c``."""
    block = problem.constraints["c"]
    previous = mu
    for t in range(T):
        half = mu + (t - 1) / (t + 2) * (mu - previous) if accelerated else mu
        for _ in range(T_y):
            y = problem.y_set.project(y - eta_1 * (problem.gradient(y) + block.pullback(y, half)))
        previous, mu = mu, np.maximum(0.0, half + eta_2 * block.value(y))
    return y, mu


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize(("T", "T_y"), [(0, 1), (1, 1), (2, 1), (3, 2), (7, 5)])
def test_published_iterates_are_those_of_the_paper(accelerated, T, T_y):
    problem = quadratic(
        np.diag([1.0, 3.0]), [1, -2], blocc.Box(-2, 2), c=([[1, 1], [1, -2]], [0.2, -1])
    )
    y, mu = np.array([0.5, 0.5]), np.array([0.3, 0.0])
    found = maxmin(
        problem, y, {"c": mu}, eta_1=0.2, eta_2=0.3, T=T, T_y=T_y, accelerated=accelerated
    )
    expected = literal(problem, y, mu, 0.2, 0.3, T, T_y, accelerated)
    np.testing.assert_allclose(found.y, expected[0], rtol=1e-14)
    np.testing.assert_allclose(found.duals["c"], expected[1], rtol=1e-14)
    assert found.iterations == T
    assert found.residual == kkt_residual(problem, found.y, found.duals)


def published_steps(qp) -> dict[str, float]:
    """The steps of the theory: 1/L for y, and 1/L of the dual function for the multipliers."""
    smooth, strong = np.linalg.eigvalsh(qp.Q)[[-1, 0]]
    return {
        "eta_1": 1 / smooth,
        "eta_2": strong / np.linalg.norm(np.vstack([qp.A, qp.E]), 2) ** 2,
    }


def published(qp, **options):
    """Algorithm 2 from zero."""
    problem = qp.problem()
    zero = {k: 0 * v for k, v in problem.values(np.zeros(qp.n)).items()}
    return maxmin(problem, np.zeros(qp.n), zero, **{**published_steps(qp), **options})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("accelerated", "T_y"), [(False, 1), (False, 20), (True, 20)])
def test_published_maxmin_solves_strongly_convex_qps(seed, accelerated, T_y):
    """Coupled inequalities and equalities; the single loop, the double loop, and the accelerated double loop."""
    qp = QP(6, 3, 1, seed)
    found = published(qp, T=2000, T_y=T_y, accelerated=accelerated)
    assert_agrees(found, qp.reference())


def test_published_maxmin_with_nonlinear_constraints():
    """A ball ``|y|^2 <= 1`` cuts off the minimum at q: the answer is q / |q|, its multiplier (|q| - 1) / 2."""
    q = np.array([2.0, -1.0, 2.0])
    ball = Constraint(lambda y: np.array([y @ y - 1]), lambda y, dual: 2 * dual[0] * y)
    problem = SaddleProblem(lambda y: 0.5 * y @ y - q @ y, lambda y: y - q, {"c": ball})
    for accelerated in (False, True):
        found = maxmin(
            problem,
            np.zeros(3),
            {"c": np.zeros(1)},
            eta_1=0.2,
            eta_2=0.2,
            T=1000,
            T_y=30,
            accelerated=accelerated,
        )
        np.testing.assert_allclose(found.y, q / 3, atol=PRIMAL)
        np.testing.assert_allclose(found.duals["c"], [1.0], atol=DUAL)


def test_acceleration_accelerates():
    """With a dual step a hundred times shorter than allowed, where the plain form crawls."""
    qp = QP(6, 3, 1, 0)
    eta_2 = 0.01 * published_steps(qp)["eta_2"]
    plain = published(qp, eta_2=eta_2, T=2000, T_y=20, record=True)
    fast = published(qp, eta_2=eta_2, T=2000, T_y=20, accelerated=True)
    assert len(plain.history) == 2000
    assert plain.history[-1] == plain.residual
    assert fast.residual < 0.1 * plain.residual


def test_acceleration_needs_the_inner_loop():
    """A single primal step does not keep up with the growing momentum: as the docstring warns, no convergence."""
    for seed in range(2):
        assert published(QP(6, 3, 1, seed), T=4000, T_y=1, accelerated=True).residual > 1e-2


# ---- the production form against Clarabel -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "m", "p"), [(3, 2, 1), (10, 5, 3), (40, 15, 5)])
def test_solve_agrees_with_clarabel(n, m, p, seed):
    qp = QP(n, m, p, seed)
    found = solve(qp.problem(), np.zeros(n), tol=1e-9)
    assert found.residual <= 1e-9
    assert found.residual == pytest.approx(
        kkt_residual(qp.problem(), found.y, found.duals), abs=1e-12
    )
    assert_agrees(found, qp.reference())
    assert found.iterations <= 1000


@pytest.mark.parametrize(
    "y_set",
    [blocc.Box(-0.5, 0.5), blocc.Box(-1.0), blocc.Ball(0.8, 0.05), blocc.Simplex(1.5)],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_solve_agrees_with_clarabel_on_every_set(y_set, seed):
    qp = QP(6, 3, 0, seed)
    inside = y_set.project(np.full(6, 0.25))
    qp.b = qp.A @ inside + np.array([0.1, 0.0, 0.3])
    found = solve(qp.problem(y_set), np.zeros(6), tol=1e-9)
    assert_agrees(found, qp.reference(y_set))


@pytest.mark.parametrize("spread", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_badly_scaled_problems_are_solved(spread, seed):
    """Rows and columns scaled by random factors of up to 10^spread either way: KKT residual and value hold."""
    qp = QP(8, 4, 2, seed, spread=spread)
    found = solve(qp.problem(), np.zeros(8), tol=1e-9)
    certificate = residuals(qp.problem(), found.y, found.duals)
    assert max(certificate.violation, certificate.dual_infeasibility, abs(certificate.gap)) <= 1e-8
    assert certificate.objective == pytest.approx(qp.reference()[2], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scaling_the_objective_scales_the_duals(scale):
    qp = QP(6, 3, 1, 0)
    y, duals, _ = qp.reference()
    problem = quadratic(scale * qp.Q, scale * qp.q, c=(qp.A, qp.b), h=(qp.E, qp.e))
    found = solve(problem, np.zeros(6), tol=1e-11 if scale < 1 else 1e-9)
    assert_agrees(found, (y, {k: scale * v for k, v in duals.items()}, None))


@pytest.mark.parametrize("seed", range(4))
def test_nonlinear_convex_constraints(seed):
    """Balls ``|y - c_i|^2 <= r_i^2`` and a log-sum-exp bound, with an equality, against Clarabel."""
    random = np.random.default_rng(seed)
    n, centers = 5, np.random.default_rng(seed + 50).normal(size=(2, 5))
    radii = np.linalg.norm(centers, axis=1) + random.uniform(0.1, 0.5, 2)
    M, q, E = random.normal(size=(4, n)), 4 * random.normal(size=n), random.normal(size=(1, n))
    bound = np.log(4) + 0.1

    def soft(y):
        return np.exp(M @ y) / np.exp(M @ y).sum()

    blocks = {
        "balls": Constraint(
            lambda y: ((y - centers) ** 2).sum(1) - radii**2,
            lambda y, dual: 2 * (y - centers).T @ dual,
        ),
        "soft": Constraint(
            lambda y: np.log(np.exp(M @ y).sum(keepdims=True)) - bound,
            lambda y, dual: dual[0] * M.T @ soft(y),
        ),
        "h": affine(E, [0.0], equality=True),
    }
    found = solve(
        SaddleProblem(lambda y: 0.5 * y @ y + q @ y, lambda y: y + q, blocks),
        np.zeros(n),
        tol=1e-10,
    )
    y = cp.Variable(n)
    constraints = [
        cp.vstack([cp.sum_squares(y - centers[i]) - radii[i] ** 2 for i in range(2)]) <= 0,
        cp.log_sum_exp(M @ y) <= bound,
        E @ y == 0,
    ]
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(y) + q @ y), constraints)
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    duals = {
        name: np.reshape(c.dual_value, -1) for name, c in zip(blocks, constraints, strict=True)
    }
    assert max(duals["balls"].max(), duals["soft"].max()) > 0.1  # something is active
    assert_agrees(found, (y.value, duals, problem.value))


def test_nonlinear_objective():
    """Logistic regression with a budget, against Clarabel."""
    random = np.random.default_rng(0)
    Z, labels = random.normal(size=(30, 4)), np.sign(random.normal(size=30))

    def gradient(w):
        return -Z.T @ (labels / (1 + np.exp(labels * (Z @ w)))) + 0.1 * w

    problem = SaddleProblem(
        lambda w: np.logaddexp(0, -labels * (Z @ w)).sum() + 0.05 * w @ w,
        gradient,
        {"budget": affine(np.ones((1, 4)), [-0.5])},
    )
    found = solve(problem, np.zeros(4), tol=1e-9)
    w = cp.Variable(4)
    budget = cp.sum(w) <= -0.5
    objective = cp.sum(cp.logistic(-cp.multiply(labels, Z @ w))) + 0.05 * cp.sum_squares(w)
    cp.Problem(cp.Minimize(objective), [budget]).solve(
        solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11
    )
    assert_agrees(found, (w.value, {"budget": np.reshape(budget.dual_value, -1)}, None))


def test_not_strongly_convex_problems_are_solved():
    """A linear program, a singular quadratic and linearly dependent constraints: beyond the theory, still certified."""
    linear = quadratic(
        np.zeros((2, 2)), [-1, -2], blocc.NonNegative(), c=([[1, 1], [1, 0]], [1, 0.5])
    )
    np.testing.assert_allclose(solve(linear, np.zeros(2), tol=1e-9).y, [0, 1], atol=1e-6)
    singular = quadratic(np.ones((2, 2)), [-1, 1], c=([[1, 0]], [0.2]))
    np.testing.assert_allclose(solve(singular, np.zeros(2), tol=1e-9).y, [0.2, -1.2], atol=1e-6)
    dependent = quadratic(np.eye(2), [-1, -2], c=([[1, 1], [1, 1], [2, 2]], [1, 1, 2]))
    np.testing.assert_allclose(solve(dependent, np.zeros(2), tol=1e-9).y, [0, 1], atol=1e-6)


def test_without_constraints():
    found = solve(quadratic(np.diag([1.0, 100.0]), [1, 2]), np.zeros(2), tol=1e-10)
    np.testing.assert_allclose(found.y, [-1, -0.02], atol=1e-9)
    assert found.duals == {}


# ---- the certificate's bound --------------------------------------------------------------------------------------

numbers = st.floats(-10, 10, allow_subnormal=False)


@settings(max_examples=200)
@given(
    st.integers(0, 5),
    st.sampled_from([blocc.Box(-0.5, 0.5), blocc.Ball(0.8, 0.05), blocc.Simplex(1.5)]),
    numpy_arrays(np.float64, 4, elements=numbers),
    numpy_arrays(np.float64, 2, elements=st.floats(0, 10, allow_subnormal=False)),
)
def test_the_bound_is_a_lower_bound_for_any_point_and_multipliers(seed, y_set, y, dual):
    qp = _with_bounded_set(seed, y_set)
    value = qp.reference(y_set)[2]
    for point in (y, y_set.project(y)):
        found = residuals(qp.problem(y_set), point, {"c": dual})
        assert found.bound <= value + 1e-7 * (1 + abs(value))


@functools.cache
def _with_bounded_set(seed, y_set) -> QP:
    qp = QP(4, 2, 0, seed)
    qp.b = qp.A @ y_set.project(np.full(4, 0.25)) + 0.1
    return qp


def test_residuals_of_the_exact_answer_vanish_and_of_others_do_not():
    qp = QP(6, 3, 1, 0)
    y, duals, value = qp.reference()
    exact = residuals(qp.problem(), y, duals)
    assert exact.bound == pytest.approx(value, rel=1e-8)
    assert (
        max(exact.violation, exact.dual_infeasibility, exact.complementarity, abs(exact.gap)) < 1e-7
    )
    assert residuals(qp.problem(), y + 0.01, duals).violation > 1e-4
    assert residuals(qp.problem(), y, {**duals, "c": duals["c"] + 0.1}).dual_infeasibility > 1e-3
    negative = residuals(qp.problem(), y, {**duals, "c": -np.ones(3)})
    assert negative.dual_infeasibility >= 0.5


def test_an_unbounded_set_shows_in_dual_infeasibility():
    """Where y is free nothing bounds the linear part: the gap alone would call this point optimal."""
    problem = quadratic(np.eye(2), [1, 1])
    found = residuals(problem, np.zeros(2), {})
    assert found.gap == 0.0
    assert found.dual_infeasibility == 1.0
    bounded = residuals(quadratic(np.eye(2), [1, 1], blocc.Box(-2, 2)), np.zeros(2), {})
    assert (bounded.gap, bounded.dual_infeasibility) == (4.0, 0.0)


# ---- no answer ----------------------------------------------------------------------------------------------------

EYE = np.eye(2)
INFEASIBLE = {
    "two rows of c": ("c", {"c": ([[1, 0], [-1, 0]], [-1, -1])}, None),
    "by a thousandth": ("c", {"c": ([[1, 0], [-1, 0]], [-1e-3, 0])}, None),
    "c against a box": ("c", {"c": ([[1, 1]], [-5])}, blocc.Box(-1, 1)),
    "c against a half space": ("c", {"c": ([[1, 1]], [-1])}, blocc.NonNegative()),
    "c against a ball": ("c", {"c": ([[-1, 0]], [-2])}, blocc.Ball()),
    "c against a simplex": ("c", {"c": ([[-1, 0]], [-2])}, blocc.Simplex()),
    "h against itself": ("h", {"h": ([[1, 1], [1, 1]], [1, 2])}, None),
    "h against a box": ("h", {"h": ([[1, 1]], [9])}, blocc.Box(-1, 1)),
    "c against itself, next to a harmless h": (
        "c",
        {"c": ([[1, 0], [-1, 0]], [-1, -1]), "h": ([[0, 1]], [0.5])},
        None,
    ),
    "h against a box, next to a harmless c": (
        "h",
        {"c": ([[1, -1]], [5]), "h": ([[1, 1]], [9])},
        blocc.Box(-1, 1),
    ),
}


@pytest.mark.parametrize("case", INFEASIBLE)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_infeasible_problems_name_the_constraint(case, scale):
    culprit, blocks, y_set = INFEASIBLE[case]
    with pytest.raises(LowerInfeasibleError, match=f"constraint '{culprit}' conflicts"):
        solve(quadratic(scale * EYE, [scale, 2 * scale], y_set, **blocks), np.zeros(2), tol=1e-8)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from([1e-2, 1.0, 1e3]))
def test_feasible_problems_are_never_called_infeasible(seed, spread, size):
    qp = QP(4, 3, 1, seed, spread=spread)
    problem = quadratic(qp.Q, size * qp.q, c=(qp.A, qp.b), h=(qp.E, qp.e))
    with contextlib.suppress(
        LowerNotSolvedError
    ):  # 1000 iterations need not be enough for the worst scaled
        solve(problem, np.zeros(4), tol=1e-6, max_iterations=1000)


@pytest.mark.parametrize("far", [1e2, 1e4, 1e6])
def test_a_distant_feasible_set_is_not_called_infeasible(far):
    problem = quadratic(EYE, [1, 2], c=([[-1, 0]], [-far]))
    np.testing.assert_allclose(solve(problem, np.zeros(2), tol=1e-9).y, [far, -2], rtol=1e-5)


@pytest.mark.parametrize("far", [1e2, 1e4, 1e5])
def test_nor_one_described_in_other_units(far):
    """The same constraint divided by ``far``: a violation of 1 that only a move of length ``far`` mends."""
    problem = quadratic(EYE, [1, 2], c=([[-1 / far, 0]], [-1]))
    found = solve(problem, np.zeros(2), tol=1e-6)
    assert found.y[0] == pytest.approx(far, rel=1e-5)


@pytest.mark.parametrize(
    ("Q", "q", "blocks", "y_set"),
    [
        (0 * EYE, [1, 2], {}, None),
        (0 * EYE, [1, 2], {}, blocc.Box(-np.inf, 1.0)),
        (0 * EYE, [1, 2], {"c": ([[1, 0]], [1])}, None),
        (np.diag([1.0, 0.0]), [1, 2], {"h": ([[1, 0]], [1])}, None),
        (np.diag([1.0, -1.0]), [1, 0.1], {}, None),
    ],
)
def test_unbounded_problems_say_so(Q, q, blocks, y_set):
    with pytest.raises(LowerUnboundedError, match=r"falls without bound.*Bound y with y_set"):
        solve(quadratic(Q, q, y_set, **blocks), np.zeros(2), tol=1e-8)


@pytest.mark.parametrize("far", [1e10, 1e12])
@pytest.mark.parametrize("coupled", [False, True])
def test_a_distant_minimum_is_not_called_unbounded(far, coupled):
    weights, center = np.array([1.0, 1e-6]), np.array([0.0, far])
    blocks = {"c": ([[1.0, 0.0]], [-3.0])} if coupled else {}
    problem = quadratic(np.diag(weights), -weights * center, **blocks)
    with contextlib.suppress(LowerNotSolvedError):  # LowerUnboundedError is another one
        found = solve(problem, np.zeros(2), tol=1e-9, max_iterations=2000)
        assert found.y[1] == pytest.approx(far, rel=1e-6)


NOT_FINITE = {
    "objective": SaddleProblem(lambda y: np.nan * y.sum(), lambda y: 2 * y + 1),
    "gradient": SaddleProblem(lambda y: y @ y, lambda y: np.nan * y),
    "constraint": SaddleProblem(
        lambda y: y @ y,
        lambda y: 2 * y + 1,
        {"c": Constraint(lambda y: np.nan * y, lambda y, d: d)},
    ),
    "pullback": SaddleProblem(
        lambda y: y @ y,
        lambda y: 2 * y + 1,
        {"c": Constraint(lambda y: y, lambda y, d: np.nan * d)},
    ),
}


@pytest.mark.parametrize("case", NOT_FINITE)
def test_nan_is_an_error_at_once(case):
    with pytest.raises(LowerNotSolvedError, match="not finite"):
        solve(NOT_FINITE[case], np.zeros(2), tol=1e-8, name="lower level")


def test_an_iterate_outside_the_domain_is_stepped_back_from():
    """Functions that are NaN above 2 where the first steps overshoot: rejected, not fatal."""

    def outside(y):
        return np.where(np.max(np.abs(y)) > 2.0, np.nan, 1.0)

    problem = SaddleProblem(
        lambda y: outside(y) * 50 * ((y - 1) ** 2).sum(), lambda y: outside(y) * 100 * (y - 1)
    )
    np.testing.assert_allclose(solve(problem, np.zeros(2), tol=1e-9).y, [1, 1], atol=1e-8)


@pytest.mark.parametrize("limit", [0, 1, 7, 20, 33])
def test_max_iterations_is_respected(limit):
    calls = 0
    qp = QP(10, 5, 3, 0)
    plain = qp.problem()

    def gradient(y):
        nonlocal calls
        calls += 1
        return plain.gradient(y)

    problem = SaddleProblem(plain.objective, gradient, plain.constraints)
    with pytest.raises(LowerNotSolvedError, match=f"after {limit} iterations, asked for 1.0e-12"):
        solve(problem, np.zeros(10), tol=1e-12, max_iterations=limit)
    setup = PROBES + POWERS + 4
    assert calls <= limit + setup + 2 * (3 + limit // 20)


def test_a_minimum_on_the_edge_of_the_domain_does_not_hang():
    """NaN right of 0.5, minimum at 1: no answer exists, and that is said in bounded time."""

    def outside(y):
        return np.where(np.max(y) > 0.5, np.nan, 1.0)

    problem = SaddleProblem(
        lambda y: outside(y) * ((y - 1) ** 2).sum(), lambda y: outside(y) * 2 * (y - 1)
    )
    with pytest.raises(LowerNotSolvedError, match="relative KKT residual"):
        solve(problem, np.zeros(2), tol=1e-9, max_iterations=3000)


# ---- how it runs --------------------------------------------------------------------------------------------------


def test_the_same_bytes_twice():
    qp = QP(12, 6, 2, 3)
    first, second = (solve(qp.problem(), np.zeros(12), tol=1e-9) for _ in range(2))
    assert first.y.tobytes() == second.y.tobytes()
    assert all(first.duals[k].tobytes() == second.duals[k].tobytes() for k in first.duals)
    assert first.history == second.history


def test_inputs_are_not_changed():
    qp = QP(4, 2, 1, 0)
    y, duals = np.zeros(4), {"c": np.ones(2), "h": np.ones(1)}
    found = solve(qp.problem(), y, duals, tol=1e-9)
    again = solve(qp.problem(), found.y, found.duals, tol=1e-10, steps=found.steps)
    assert y.tolist() == [0.0] * 4
    assert duals["c"].tolist() == [1.0, 1.0]
    assert again.residual <= 1e-10


def test_a_solved_problem_needs_no_iteration():
    qp = QP(10, 5, 3, 1)
    found = solve(qp.problem(), np.zeros(10), tol=1e-9)
    again = solve(qp.problem(), found.y, found.duals, tol=1e-9, steps=found.steps)
    assert again.iterations == 0
    assert again.y.tobytes() == found.y.tobytes()


def test_a_start_outside_the_set_or_with_negative_duals_is_projected():
    qp = QP(4, 2, 0, 0)
    y_set = blocc.Box(-0.5, 0.5)
    qp.b = qp.b + 1.0
    far = solve(qp.problem(y_set), np.full(4, 100.0), {"c": -np.ones(2)}, tol=1e-9)
    near = solve(qp.problem(y_set), np.zeros(4), tol=1e-9)
    np.testing.assert_allclose(far.y, near.y, atol=1e-7)


def test_any_shape_of_y():
    qp = QP(6, 3, 1, 2)
    flat = qp.problem()

    def shaped(block):
        return Constraint(
            lambda y: block.value(y.reshape(-1)),
            lambda y, dual: block.pullback(y.reshape(-1), dual).reshape(2, 3),
            block.equality,
        )

    problem = SaddleProblem(
        lambda y: flat.objective(y.reshape(-1)),
        lambda y: flat.gradient(y.reshape(-1)).reshape(2, 3),
        {k: shaped(v) for k, v in flat.constraints.items()},
    )
    found = solve(problem, np.zeros((2, 3)), tol=1e-9)
    assert found.y.shape == (2, 3)
    assert_agrees(blocc_flat(found), qp.reference())


def blocc_flat(found):
    """The same answer with y as a vector."""
    import dataclasses

    return dataclasses.replace(found, y=found.y.reshape(-1))


def test_the_dual_step_does_not_collapse_near_the_answer():
    """Warm-started with y moving and the duals at rest, the primal weight used to fall until the duals stood still.

    A penalised problem of a bilevel solve that took thousands of iterations to 1e-11.
    """
    gamma = 409.6
    a, b = 1 / gamma, np.array([1.5, 0.2, -0.4])
    x = np.array([1.0764748374623287, 0.2040231290913763])
    q, B = np.array([2.0, 1.0, 3.0]), np.array([[1.0, 0.3], [0.2, -1.0], [0.5, 0.5]])
    problem = quadratic(
        np.diag(q + a),
        -B @ x - a * b,
        blocc.Box(-5, 5),
        c=([[1, 1, 0], [0, 1, -1]], np.array([0.8, 0.3]) - [0.5 * x[0], -0.3 * x[1]]),
        h=([[1, 0, 1]], [0.4 - 0.2 * x[0] - 0.1 * x[1]]),
    )
    steps = Steps(
        np.array([0.52455014, 0.64953871, 0.3891339]),
        {"c": np.array([0.64493297, 1.2002902]), "h": np.array([0.9013655])},
        curvature=q + a,
        coupling=np.asarray(1.5),
        omega=np.asarray(1.280179),
    )
    duals = {"c": np.zeros(2), "h": np.array([0.7428301201633599])}
    y = np.array([0.1995606418413873, 0.019838123516409557, -0.03517847171672406])
    assert solve(problem, y, duals, tol=1e-11, steps=steps).iterations <= 400


def test_single_precision_stays_and_reaches_its_rounding_level():
    qp = QP(10, 5, 3, 0)
    for key in ("Q", "q", "A", "b", "E", "e"):
        setattr(qp, key, getattr(qp, key).astype(np.float32))
    blocks = {
        "c": Constraint(lambda y: qp.A @ y - qp.b, lambda y, d: qp.A.T @ d),
        "h": Constraint(lambda y: qp.E @ y - qp.e, lambda y, d: qp.E.T @ d, equality=True),
    }
    problem = SaddleProblem(
        lambda y: np.float32(0.5) * y @ qp.Q @ y + qp.q @ y, lambda y: qp.Q @ y + qp.q, blocks
    )
    found = solve(problem, np.zeros(10, dtype=np.float32), tol=2e-6)
    assert found.y.dtype == found.duals["c"].dtype == found.duals["h"].dtype == np.float32
    np.testing.assert_allclose(found.y, QP(10, 5, 3, 0).reference()[0], atol=1e-4)


def test_a_tolerance_below_rounding_level_ends_at_rounding_level():
    qp = QP(5, 2, 1, 0)
    found = solve(qp.problem(), np.zeros(5), tol=0.0)
    assert 0 <= found.residual < 1e-13
    assert found.iterations < 5000


# ---- batches ------------------------------------------------------------------------------------------------------


def batch_of(programs, y_set=None) -> SaddleProblem:
    """The quadratic programs as one problem whose first axis counts them."""
    Q, q, A, b, E, e = (
        np.stack([getattr(program, name) for program in programs])
        for name in ("Q", "q", "A", "b", "E", "e")
    )

    def times(matrices, vectors):
        return np.einsum("kij,kj->ki", matrices, vectors)

    def back(matrices, vectors):
        return np.einsum("kij,ki->kj", matrices, vectors)

    blocks = {
        "c": Constraint(lambda y: times(A, y) - b, lambda y, dual: back(A, dual)),
        "h": Constraint(lambda y: times(E, y) - e, lambda y, dual: back(E, dual), equality=True),
    }
    return SaddleProblem(
        lambda y: (0.5 * times(Q, y) * y + q * y).sum(axis=1),
        lambda y: times(Q, y) + q,
        blocks,
        y_set or blocc.Free(),
    )


def test_every_instance_of_a_batch_agrees_with_clarabel():
    """Easy, ill-conditioned and badly scaled programs side by side: each is solved to its own answer."""
    programs = [QP(6, 3, 1, seed, spread=0.3 * (seed % 3)) for seed in range(9)]
    found = blocc.maxmin.solve_batch(batch_of(programs), np.zeros((9, 6)), tol=1e-9)
    assert found.solved.all()
    for i, qp in enumerate(programs):
        duals = {k: v[i] for k, v in found.duals.items()}
        residual = kkt_residual(qp.problem(), found.y[i], duals)
        assert residual <= 1e-9
        assert residual == pytest.approx(found.residual[i], abs=1e-12)
        certificate = residuals(qp.problem(), found.y[i], duals)
        assert certificate.objective == pytest.approx(qp.reference()[2], rel=1e-6, abs=1e-6)


def test_an_instance_without_an_answer_is_marked_and_the_others_are_solved():
    programs = [QP(4, 2, 1, seed) for seed in range(3)]
    programs[1].A, programs[1].b = np.array([[1.0, 0, 0, 0], [-1, 0, 0, 0]]), np.array([-1.0, -1])
    found = blocc.maxmin.solve_batch(
        batch_of(programs, blocc.Box(-9, 9)), np.zeros((3, 4)), tol=1e-8, max_iterations=2000
    )
    assert found.solved.tolist() == [True, False, True]
    assert found.iterations == 2000
    assert found.residual[1] > 0.1
    assert np.isfinite(found.y).all()


def test_a_solved_batch_needs_no_iteration():
    programs = [QP(4, 2, 1, seed) for seed in range(3)]
    found = blocc.maxmin.solve_batch(batch_of(programs), np.zeros((3, 4)), tol=1e-8)
    again = blocc.maxmin.solve_batch(batch_of(programs), found.y, found.duals, tol=1e-8)
    assert again.iterations == 0
    assert again.y.tobytes() == found.y.tobytes()


def test_batches_refuse_what_would_mix_instances():
    programs = [QP(4, 2, 1, seed) for seed in range(3)]
    problem = batch_of(programs)
    with pytest.raises(InvalidInputError, match="needs a Box as y_set, got Ball"):
        blocc.maxmin.solve_batch(batch_of(programs, blocc.Ball(1.0)), np.zeros((3, 4)), tol=1e-8)
    mixed = SaddleProblem(lambda y: problem.objective(y).sum(), problem.gradient)
    with pytest.raises(InvalidInputError, match=r"must return shape \(3,\), got \(\)"):
        blocc.maxmin.solve_batch(mixed, np.zeros((3, 4)), tol=1e-8)
    with pytest.raises(InvalidInputError, match="tol must be at least 0"):
        blocc.maxmin.solve_batch(problem, np.zeros((3, 4)), tol=-1.0)


def test_duals_at_rest_do_not_keep_primal_steps_short():
    """No row ever binds, and the first primal weight is far too large: it used to stay, at thousands of iterations."""
    rows = ([[1.0, 1.0], [1.0, -1.0]], [100.0, 100.0])
    problem = quadratic(np.diag([1.0, 2.0]), [-1.0, -1.0], c=rows)
    weights = {"c": np.full(2, 0.5)}
    steps = Steps(np.ones(2), weights, np.array([1.0, 2.0]), np.asarray(1.0), np.asarray(1e3))
    found = solve(problem, np.zeros(2), tol=1e-9, steps=steps)
    np.testing.assert_allclose(found.y, [1.0, 0.5], atol=1e-8)
    assert found.iterations <= 500
