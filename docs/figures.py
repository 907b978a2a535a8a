"""Draw the figures of the convergence page, and the table of what was measured.

Run by ``docs/conf.py`` when the site is built, or by hand::

    python docs/figures.py docs/generated/figures

Every curve is computed here from blocc itself; nothing is read from a file. The problem is a quadratic
bilevel program with coupled constraints, small enough that the whole script takes well under a minute.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the benchmarks' problems

import blocc
import blocc.conic_saddle
from benchmarks.first_order import FAMILIES, saddle
from blocc.maxmin import _Iteration, kkt_residual, maxmin, solve
from blocc.methods.published import blocc as algorithm_1
from blocc.penalty import Penalty, Response

STEPS = np.geomspace(0.02, 2.0, 9)  # the grid from which the published method's steps are taken
OUTER_STEPS = (0.001, 0.003, 0.01, 0.03, 0.1)  # likewise for Algorithm 1
BLUE, ORANGE, RED, GREEN, GREY = "#1f5fa8", "#d1661b", "#a8324a", "#2a8550", "#7a828c"


class CoupledQP:
    """Coupled constraints, closed-form derivatives, known hypergradient.

    ``f = 1/2 |x - a|^2 + 1/2 |y - b|^2``, ``g = 1/2 y'Qy + (q + Px)'y``, ``c = Cy - Dx - d <= 0``, x in [-1, 1].
    """

    def __init__(self, n_x: int, n_y: int, m: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        root = random.standard_normal((n_y, n_y))
        self.Q = root @ root.T / n_y + 0.1 * np.eye(n_y)
        self.P, self.q = random.standard_normal((n_y, n_x)), random.standard_normal(n_y)
        self.C, self.D = random.standard_normal((m, n_y)), random.standard_normal((m, n_x))
        self.d = np.abs(self.D).sum(axis=1) + random.uniform(0.05, 0.5, m)  # y = 0 is feasible
        self.a, self.b = random.standard_normal(n_x), random.standard_normal(n_y)
        self.x0, self.y0 = np.zeros(n_x), np.zeros(n_y)

    def arguments(self) -> dict[str, blocc.Function]:
        def f(x, y, data):
            return 0.5 * ((x - self.a) ** 2).sum() + 0.5 * ((y - self.b) ** 2).sum()

        def g(x, y, data):
            return 0.5 * y @ self.Q @ y + (self.q + self.P @ x) @ y

        def c(x, y, data):
            return self.C @ y - self.D @ x - self.d

        return {
            "f": blocc.Function(f, lambda x, y, data: (x - self.a, y - self.b)),
            "g": blocc.Function(
                g, lambda x, y, data: (self.P.T @ y, self.Q @ y + self.q + self.P @ x)
            ),
            "c": blocc.Function(c, lambda x, y, w, data: (-self.D.T @ w, self.C.T @ w)),
        }

    def model(self) -> CountingModel:
        return CountingModel(**self.arguments(), x0=self.x0, y0=self.y0, x_set=blocc.Box(-1.0, 1.0))

    def response(self, x, y, dual):
        """Answer of the lower level, and gradient of ``f(x, y_g(x))``, by linear algebra on its active set."""
        active = dual > 1e-7
        k = int(active.sum())
        system = np.block([[self.Q, self.C[active].T], [self.C[active], np.zeros((k, k))]])
        right = np.concatenate([-self.q - self.P @ x, (self.D @ x + self.d)[active]])
        exact = np.linalg.solve(system, right)[: len(y)]
        adjoint = np.linalg.solve(system, np.concatenate([exact - self.b, np.zeros(k)]))
        derivative = np.concatenate([-self.P, self.D[active]])
        return exact, x - self.a + derivative.T @ adjoint


class CountingModel(blocc.FunctionalModel):
    """Counts MaxMin iterations, and notes the true upper value at every x that is looked at."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.iterations = 0
        self.seen: list[tuple[int, float]] = []

    def lower(self, x, *, tol, warm=None):
        saddle = super().lower(x, tol=tol, warm=warm)
        self.iterations += saddle.iterations
        self.seen.append((self.iterations, self.upper(x, saddle.y)))
        return saddle

    def penalized(self, x, gamma, *, tol, warm=None):
        saddle = super().penalized(x, gamma, tol=tol, warm=warm)
        self.iterations += saddle.iterations
        return saddle


def _axes(count: int) -> tuple[Figure, list]:
    figure = Figure(figsize=(4.6 * count, 3.6), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, count)))
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color="#e3e6ea", linewidth=0.6)
    return figure, axes


def _best(problem, y, duals, accelerated: bool, T_y: int, T: int) -> tuple[float, float]:
    """Pair of fixed steps, out of a grid, at which published MaxMin ends with the smallest residual."""
    found = {}
    with np.errstate(over="ignore", invalid="ignore"):  # steps too long diverge, and lose
        for eta_1 in STEPS:
            for eta_2 in STEPS:
                run = maxmin(
                    problem,
                    y,
                    duals,
                    eta_1=eta_1,
                    eta_2=eta_2,
                    T=T // T_y,
                    T_y=T_y,
                    accelerated=accelerated,
                )
                found[eta_1, eta_2] = run.residual if np.isfinite(run.residual) else np.inf
    return min(found, key=found.__getitem__)


def _calls(problem, run) -> tuple[int, int, int]:
    """How often a run calls the values of a problem's one constraint, its pullback and the objective's gradient."""
    counts = [0, 0, 0]

    def counted(index, function):
        def call(*arguments):
            counts[index] += 1
            return function(*arguments)

        return call

    block = problem.constraints["c"]
    block = replace(block, value=counted(0, block.value), pullback=counted(1, block.pullback))
    run(replace(problem, gradient=counted(2, problem.gradient), constraints={"c": block}))
    return tuple(counts)


def maxmin_convergence(directory: Path) -> list[tuple[str, str]]:
    """KKT residual of Algorithm 2, plain and accelerated, and of the production form."""
    model = CoupledQP(4, 20, 10, seed=0).model()
    problem = model.saddle_problem(model.x_set.project(np.full(4, 0.3)), None)
    y, duals = model.y0, {"c": np.zeros(10)}
    budget, rows = 1200, []
    figure, (axes,) = _axes(1)
    for name, accelerated, T_y, colour in (
        ("plain, T_y = 1", False, 1, BLUE),
        ("accelerated, T_y = 1", True, 1, ORANGE),
        ("accelerated, T_y = 10", True, 10, RED),
    ):
        eta_1, eta_2 = _best(problem, y, duals, accelerated, T_y, 400)
        run = maxmin(
            problem,
            y,
            duals,
            eta_1=eta_1,
            eta_2=eta_2,
            T=budget // T_y,
            T_y=T_y,
            accelerated=accelerated,
            record=True,
        )
        steps = T_y * np.arange(1, len(run.history) + 1)
        label = f"published, {name}"
        axes.semilogy(steps, np.maximum(run.history, 1e-17), color=colour, label=label)
        reached = next((t for t, r in zip(steps, run.history, strict=True) if r <= 1e-8), None)
        rows.append(
            (
                f"MaxMin {label} (steps {eta_1:.2g} and {eta_2:.2g}, best of {len(STEPS) ** 2} pairs): "
                "primal steps to a residual of 1e-8",
                str(reached) if reached else f"not in {budget}; ends at {run.history[-1]:.0e}",
            )
        )
    run = solve(problem, y, tol=1e-12, check_every=5)
    axes.semilogy(run.looks, np.maximum(run.history, 1e-17), color=GREEN, label="production form")
    reached = next(t for t, r in zip(run.looks, run.history, strict=True) if r <= 1e-8)
    rows.append(
        ("MaxMin production form, no steps given: primal steps to a residual of 1e-8", str(reached))
    )
    rows.append(
        (
            "MaxMin production form, before its first step: constraint values, products with the transposed Jacobian, "
            "gradients of g",
            "{}, {}, {}".format(
                *_calls(problem, lambda counted: _Iteration(counted, y, None).begin(None))
            ),
        )
    )
    axes.set_xlabel("primal steps")
    axes.set_ylabel("relative KKT residual")
    axes.set_xlim(0, budget)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(directory / "maxmin.svg")
    return rows


def _algorithm_1(setup: CoupledQP, gamma: float, eta: float, T: int, inner: int):
    """True upper value and F_gamma along a run of Algorithm 1, each found afresh at the run's x."""
    track: list = []
    algorithm_1(
        setup.model(),
        setup.x0,
        gamma=gamma,
        eta=eta,
        T=T,
        eta_1g=0.25,
        eta_1F=0.25 / (1.0 + gamma),
        eta_2=0.25,
        T_inner=inner,
        callback=track.append,
    )
    exact, true, penalty = setup.model(), [], []
    look = Penalty(exact, gamma, tol=1e-10)
    for step in track[::10]:
        here = look(step.x)
        true.append(here.response)
        penalty.append(here.value)
    return true, penalty


def outer_convergence(directory: Path) -> list[tuple[str, str]]:
    """True upper value above the best known, over the MaxMin iterations spent."""
    setup = CoupledQP(3, 8, 5, seed=3)
    model = setup.model()
    solved = blocc.solve(model, setup.x0)
    work, values = map(np.array, zip(*model.seen, strict=True))
    best = solved.objective
    rows = [
        ("production solve: true upper value", f"{best:.8f}, {solved.status.name.lower()}"),
        (
            "production solve: MaxMin iterations, certificate included",
            f"{model.iterations}",
        ),
    ]
    figure, (left, right) = _axes(2)
    left.loglog(
        np.maximum(work, 1),
        np.maximum(np.minimum.accumulate(values) - best, 1e-13),
        color=GREEN,
        label="production solve",
    )
    inner, T = 50, 250
    for gamma, colour in ((5.0, ORANGE), (20.0, BLUE)):
        runs = {eta: _algorithm_1(setup, gamma, eta, T, inner) for eta in OUTER_STEPS}
        eta = min(runs, key=lambda eta: np.min(runs[eta][0]))
        true, penalty = runs[eta]
        every = np.arange(1, T + 1)[:: T // len(true)]
        left.loglog(
            2 * inner * every,
            np.maximum(np.minimum.accumulate(true) - best, 1e-13),
            color=colour,
            label=rf"Algorithm 1, $\gamma$ = {gamma:g}",
        )
        right.plot(every, penalty, color=colour, label=rf"$\gamma$ = {gamma:g}")
        rows.append(
            (
                f"Algorithm 1, gamma = {gamma:g} (step {eta:g}, the best of {len(OUTER_STEPS)}), {T} outer iterations, "
                f"{2 * inner * T} MaxMin iterations: best true upper value above the production solve's",
                f"{np.min(true) - best:.1e}",
            )
        )
    left.set_xlabel("MaxMin iterations")
    left.set_ylabel("true upper value above the best")
    left.legend(frameon=False)
    right.axhline(best, color=GREEN, linestyle="--", label="best true upper value")
    right.set_xlabel("outer iteration of Algorithm 1")
    right.set_ylabel(r"penalised value $F_\gamma$")
    right.legend(frameon=False)
    figure.savefig(directory / "outer.svg")
    return rows


def gamma_study(directory: Path) -> list[tuple[str, str]]:
    """Distances and gradient errors against gamma, with the slopes that the derivations predict."""
    setup = CoupledQP(3, 8, 5, seed=3)
    model, x = setup.model(), np.array([0.2, -0.4, 0.1])
    lower = model.lower(x, tol=1e-12)
    y, hypergradient = setup.response(x, lower.y, lower.duals["c"])
    gammas = np.geomspace(1.0, 1e5, 16)
    distance, missing, plain, extrapolated = [], [], [], []
    for gamma in gammas:
        at = Penalty(model, gamma, tol=1e-12)(x)
        distance.append(np.linalg.norm(at.penalized.y - y))
        missing.append(model.upper(x, y) - at.value)
        plain.append(np.linalg.norm(at.gradient - hypergradient))
        two = Response(model, gamma, tol=1e-12)(x).gradient
        extrapolated.append(np.linalg.norm(two - hypergradient))
    figure, (left, right) = _axes(2)
    left.loglog(gammas, distance, "o-", ms=3.5, color=BLUE, label=r"$\|y_F - y_g\|$")
    left.loglog(gammas, missing, "s-", ms=3.5, color=ORANGE, label=r"$f(x, y_g) - F_\gamma(x)$")
    right.loglog(gammas, plain, "o-", ms=3.5, color=BLUE, label=r"$\nabla F_\gamma$")
    right.loglog(
        gammas,
        extrapolated,
        "s-",
        ms=3.5,
        color=ORANGE,
        label=r"$2 \nabla F_{2\gamma} - \nabla F_\gamma$",
    )
    left.loglog(gammas, 3 * distance[-1] * gammas[-1] / gammas, ":", color=GREY, label="slope -1")
    right.loglog(gammas, 3 * plain[-1] * gammas[-1] / gammas, ":", color=GREY, label="slope -1")
    middle = (gammas >= 30) & (gammas <= 1e3)
    guide = np.array(extrapolated)[middle][0] / 3 * (gammas[middle] / gammas[middle][0]) ** -2.0
    right.loglog(gammas[middle], guide, "--", color=GREY, label="slope -2")
    for axes, text in ((left, "distance"), (right, "error of the hypergradient")):
        axes.set_xlabel(r"$\gamma$")
        axes.set_ylabel(text)
        axes.legend(frameon=False)
    figure.savefig(directory / "gamma.svg")

    def slope(values: list[float], keep) -> str:
        return f"{np.polyfit(np.log(gammas[keep]), np.log(np.array(values)[keep]), 1)[0]:.2f}"

    late = gammas >= 30
    return [
        ("slope of the distance between y_F and y_g, gamma from 30 to 1e5", slope(distance, late)),
        ("slope of f(x, y_g) - F_gamma(x)", slope(missing, late)),
        ("slope of the error of grad F_gamma", slope(plain, late)),
        (
            "slope of the error of 2 grad F_2gamma - grad F_gamma, gamma from 30 to 1e3",
            slope(extrapolated, middle),
        ),
        ("its smallest error, and the gamma there", _smallest(gammas, extrapolated)),
        ("the smallest error of grad F_gamma, and the gamma there", _smallest(gammas, plain)),
    ]


def restarts(directory: Path) -> list[tuple[str, str]]:
    """Residual over iterations on the performance page's QPs: restarted, and the same iteration never restarted."""
    figure, (axes,) = _axes(1)
    rows, every = [], 20
    for (name, family), color in zip(FAMILIES.items(), (BLUE, ORANGE, RED), strict=False):
        program = family(1000, 0)
        problem = saddle(program)
        start = np.clip(np.zeros(len(program.q)), program.lower, program.upper)
        run = solve(problem, start, tol=1e-9)
        history, looks = np.array(run.history), np.array(run.looks)
        axes.semilogy(looks, history, color=color, label=name)
        once = _Iteration(problem, start, None)
        once.begin(run.steps)
        at, left = np.arange(every, 2001, every), []
        for _ in at:
            for _ in range(every):
                once.step(False)
            left.append(kkt_residual(problem, once.y, once.mu))
        axes.semilogy(at, left, ":", color=color)
        late = (history < 1e-2) & (history > 1e-8)
        rate = -1.0 / np.polyfit(looks[late], np.log10(history[late]), 1)[0]
        slope = np.polyfit(np.log(at[at >= 200]), np.log(np.array(left)[at >= 200]), 1)[0]
        reached = looks[np.argmax(history <= 1e-8)] if (history <= 1e-8).any() else "not reached"
        rows += [
            (
                f"MaxMin on {name}, 1,000 variables: iterations for each further digit",
                f"{rate:.0f}",
            ),
            (
                "the same, iterations to 1e-8; residual after 2,000 never restarted, and the power of k it falls with",
                f"{reached}; {left[-1]:.0e}, {slope:.2f}",
            ),
        ]
    late = np.array([200, 2000])
    axes.semilogy(late, 2.0 / late, "--", color=GREY, label="slope of 1/k")
    axes.set_xlim(0, 3000)
    axes.set_xlabel("iterations (dotted: never restarted)")
    axes.set_ylabel("relative KKT residual")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(directory / "restarts.svg")
    return rows


def _smallest(gammas, errors) -> str:
    best = int(np.argmin(errors))
    return f"{errors[best]:.0e} at {gammas[best]:.0e}"


def main(directory: str | Path) -> list[tuple[str, str]]:
    """Write maxmin.svg, outer.svg, gamma.svg, restarts.svg and measured.md; return the rows of the table."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    blocc.conic_saddle.SMALL = 0  # MaxMin is what is shown, also where a QP solver would be taken
    parts = (maxmin_convergence, outer_convergence, gamma_study, restarts)
    rows = [row for part in parts for row in part(directory)]
    table = [
        "| measured | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
    ]
    (directory / "measured.md").write_text("\n".join(table) + "\n")
    return rows


if __name__ == "__main__":
    for name, value in main(sys.argv[1] if len(sys.argv) > 1 else "docs/generated/figures"):
        print(f"{name}: {value}")
