"""The outer solve: relaxation, then a homotopy in gamma, then a polish at the true response, then the certificate.

Knows the problem only as a :class:`blocc.model.Model`. gamma rises in stages, each warm-started from the last (a
large gamma from a cold start stalls, design section 2), until what the penalised answer still gives away,
``gamma (g - v)``, is within tolerance; once it is small, the true response is polished with extrapolated gradients.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal

from blocc.arrays import asarray_like, device_of, namespace, precision, random_signs, to_numpy
from blocc.certificate import Certified, certify, predicted_decrease
from blocc.errors import (
    RUNAWAY,
    CorruptFileError,
    InvalidInputError,
    LowerInfeasibleError,
    LowerLevelError,
    LowerNotSolvedError,
    NotWrittenError,
    SolveError,
    SolveInterrupted,
    UpperUnboundedError,
    require_number,
)
from blocc.gradients import starting_point
from blocc.methods import descent
from blocc.methods.convex_concave import convex_concave
from blocc.methods.gradient_sampling import LARGEST, gradient_sampling
from blocc.model import (
    CanRestore,
    HasConvexConcaveStep,
    HasImprovement,
    HasRelaxation,
    Model,
    Schedule,
)
from blocc.penalty import Evaluation, Penalty, Response, Warm
from blocc.progress import Progress
from blocc.result import Result, Status, read_archive, write_archive
from blocc.sets import Box

Array = Any
Method = Literal["auto", "convex_concave", "lbfgsb", "spectral"]
METHODS = ("auto", "convex_concave", "lbfgsb", "spectral")
OnFailure = Literal["raise", "return"]
CHECKPOINT = "blocc-checkpoint-2"
_OUTSIDE = (
    "the steps left the x at which the lower level has an answer, by less than their tolerances show, and found no way "
    "back ({}). Where few x have one, write the model in CVXPY: its method keeps the constraints"
)
MODEL = ("x_set", "upper", "upper_violation", "lower", "penalized", "residuals")
PROBES = 20
PROBE_ROUNDS = 3
STAGE_STEPS = 30
COLD_ROUNDS, COLD_STEPS = 8, 30
NEAR = 100.0  # tolerances by which the last penalty may miss the true value without a doubt about its gradient
INSIDE = 1e-9  # relative distance from the edge of the lower level's domain at which a restored x may lie
POLISH_AT = 1e-3  # relative penalty below which extrapolated hypergradients are accurate (error about its square)


@dataclass
class _State:
    """What a stage needs of the ones before it, and all that a checkpoint holds."""

    x: Array
    interior: Array
    gamma: float
    level: float = math.nan  # lower-level value at the interior point
    stage: int = 0
    iterations: int = 0
    polished: bool = False
    bound: float | None = None
    relaxed_x: Array | None = None
    best_x: Array | None = None
    best_response: float = math.inf
    restored: bool = False  # whether x had to be moved to where upper constraints on y can be met
    relative: float = (
        math.inf
    )  # how far the last stage's F_gamma was from the true value: sets how exact the next is

    def remember(self, here: Evaluation) -> None:
        """Keep the best response."""
        if here.response < self.best_response:
            self.best_response, self.best_x = here.response, here.x


@dataclass(frozen=True)
class _Candidate:
    x: Array
    gamma: float
    extrapolate: bool
    anchor: Array | None = None  # where it is stationary, if x was moved from there without loss


class Homotopy:
    """One solve of a model. :func:`solve` is the function form.

    Parameters are those of :func:`solve`.
    """

    def __init__(
        self,
        model: Model,
        *,
        gamma: float | None,
        method: Method,
        tol: float,
        max_iterations: int,
        progress: Progress,
        checkpoint: str | os.PathLike[str] | None,
    ):
        if method not in METHODS:
            raise InvalidInputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        require_number("tol", tol, Real)
        require_number("max_iterations", max_iterations, Integral)
        if gamma is not None:
            require_number("gamma", gamma, Real)
        if not 0 < tol < 1:
            raise InvalidInputError(f"tol must be between 0 and 1, got {tol}")
        if gamma is not None and not 0 < gamma < math.inf:
            raise InvalidInputError(f"gamma must be positive and finite, got {gamma}")
        if max_iterations < 1:
            raise InvalidInputError(f"max_iterations must be at least 1, got {max_iterations}")
        self.model, self.fixed_gamma, self.tol = model, gamma, tol
        self.max_iterations, self.progress, self.checkpoint = max_iterations, progress, checkpoint
        self.schedule: Schedule = getattr(model, "schedule", Schedule())
        self.method = self._choose(method)
        self.warm = Warm()
        self.floor = 1e-13

    def _choose(self, method: Method) -> str:
        if method == "convex_concave" and not isinstance(self.model, HasConvexConcaveStep):
            raise InvalidInputError(
                "method='convex_concave' needs a model with a convex-concave step; use 'auto'"
            )
        if method == "lbfgsb" and not isinstance(self.model.x_set, Box):
            raise InvalidInputError(
                f"method='lbfgsb' needs x_set to be a Box, not {type(self.model.x_set).__name__}; use 'spectral'"
            )
        if method != "auto":
            return method
        if isinstance(self.model, HasConvexConcaveStep):
            return "convex_concave"
        return "lbfgsb" if isinstance(self.model.x_set, Box) else "spectral"

    def _saddle_tol(self, stage_tol: float, gamma: float) -> float:
        # saddle-point errors reach the gradient of F_gamma multiplied by gamma
        return min(max(1e-3 * stage_tol / max(1.0, gamma), self.floor), 1e-6)

    def _steps(
        self, method: str, oracle: Any, start: Evaluation, tol: float, budget: int
    ) -> Iterator[Evaluation]:
        if method == "convex_concave":
            return convex_concave(oracle, start, tol=tol, max_iterations=budget)
        if method == "lbfgsb":
            assert isinstance(self.model.x_set, Box)
            return self._lbfgsb(oracle, start, tol, budget)
        return descent.spectral(oracle, start, self.model.x_set, tol=tol, max_iterations=budget)

    def _lbfgsb(
        self, oracle: Any, here: Evaluation, tol: float, budget: int
    ) -> Iterator[Evaluation]:
        assert isinstance(self.model.x_set, Box)
        for accepted in descent.lbfgsb(
            oracle, here, self.model.x_set, tol=tol, max_iterations=budget
        ):
            here = accepted
        if (
            tol > self.tol
            or descent.stationarity(here.x, here.gradient, self.model.x_set) > 1e3 * tol
        ):
            yield here
            return
        # near the end values are level within their noise, and only gradients still tell: spectral steps use them
        finish = descent.spectral(
            oracle, here, self.model.x_set, tol=tol, max_iterations=20, first_move=1e-4
        )
        for accepted in finish:
            here = accepted
        yield here

    def _first_order(self, here: Evaluation, method: str) -> float:
        if method == "convex_concave":
            return predicted_decrease(self.model, here, tol=self._saddle_tol(self.tol, here.gamma))
        return descent.stationarity(here.x, here.gradient, self.model.x_set)

    def _record(self, state: _State, here: Evaluation, method: str, first_order: float) -> None:
        state.iterations += 1
        state.remember(here)
        self.progress.row(
            method=method,
            gamma=here.gamma,
            penalized=here.value,
            response=here.response,
            penalty=here.penalty,
            stationarity=first_order,
        )

    def _refuse_runaway(self, here: Evaluation, start: Array, oracle: Any) -> None:
        """Raise where x has gone to astronomical sizes, may go on, and the objective still falls in proportion."""
        xp = namespace(here.x)
        size = float(xp.max(xp.abs(here.x)))
        if size <= RUNAWAY * (1.0 + float(xp.max(xp.abs(start)))):
            return
        further = self.model.x_set.project(10.0 * here.x)
        if float(xp.max(xp.abs(further))) < 5.0 * size:
            return
        try:
            there = oracle(further)
        except LowerLevelError:
            return
        if there.value < here.value - 1e-3 * (1.0 + abs(here.value)):
            raise UpperUnboundedError(size)

    def _minimize(
        self, state: _State, oracle: Any, method: str, tol: float, steps: int | None = None
    ) -> Evaluation:
        """Minimise an oracle from state.x, recording every accepted point."""
        with self.progress.timed(method if not isinstance(oracle, Response) else "polish"):
            here: Evaluation = oracle(state.x)
            state.remember(here)  # the start counts too
            budget = max(1, self.max_iterations - state.iterations)
            if steps is not None:
                budget = min(budget, steps)
            if tol > self.tol and method != "convex_concave":
                budget = min(budget, STAGE_STEPS)  # a stage on the way need not converge

            def guarded(x: Array) -> Evaluation:
                there: Evaluation = oracle(x)
                self._refuse_runaway(there, state.interior, oracle)
                return there

            evaluate = oracle if method == "convex_concave" else guarded
            for accepted in self._steps(method, evaluate, here, tol, budget):
                here = accepted
                shown = math.nan if method == "convex_concave" else self._first_order(here, method)
                self._record(state, here, method, shown)
            return here

    def _improved(self, state: _State, here: Evaluation, oracle: Penalty) -> Evaluation | None:
        """The model's own move without loss, where it gains."""
        if not isinstance(self.model, HasImprovement):
            return None
        better = None
        with self.progress.timed("improve"):
            for tol in (oracle.tol, self.floor, 1e2 * self.floor):  # as far as the new x allows
                try:
                    moved = self.model.improve(here.x, here.lower)
                    better = Penalty(self.model, oracle.gamma, tol=tol, warm=self.warm)(moved)
                    break
                except LowerNotSolvedError:
                    continue
                except LowerLevelError:
                    break
        if better is None:
            return None
        if not better.response < here.response:
            return None
        self._record(state, better, "improve", math.nan)
        return better

    def stages(self, state: _State) -> Iterator[_Candidate]:
        """Run the gamma stages from a state; yield candidates for the answer, the last the most accurate."""
        while True:
            gamma = state.gamma if self.fixed_gamma is None else self.fixed_gamma
            last = self.fixed_gamma is not None
            final = last or gamma >= self.schedule.limit
            stage_tol = (
                0.3 * self.tol if final else min(max(0.1 * state.relative, 0.1 * self.tol), 1e-3)
            )
            if self.method == "convex_concave":
                stage_tol = min(
                    stage_tol, 10.0 * self.tol
                )  # where a stage ends decides which optimum is reached
            sharp = final or self.method == "convex_concave"
            accuracy = self._saddle_tol(stage_tol, gamma) * (1e-2 if sharp else 1.0)
            penalty = Penalty(self.model, gamma, tol=max(accuracy, 1e-13), warm=self.warm)
            try:
                here = self._minimize(state, penalty, self.method, stage_tol)
            except LowerLevelError as error:
                if isinstance(error, LowerInfeasibleError) and self._into_domain(state):
                    continue
                # f weighs so much that f + gamma g is not solved here: a larger gamma is closer to the lower level
                if last or gamma * self.schedule.factor > self.schedule.limit:
                    if isinstance(error, LowerInfeasibleError) and state.restored:
                        raise LowerNotSolvedError(_OUTSIDE.format(error)) from error
                    raise
                state.gamma = gamma * self.schedule.factor
                continue
            state.x = here.x
            state.relative = _left(here, self.tol)
            last = last or state.relative <= self.tol or gamma >= self.schedule.limit
            last = last or state.iterations >= self.max_iterations
            smooth = self.method != "convex_concave" and self.fixed_gamma is None
            if state.relative <= POLISH_AT and smooth and not state.polished:
                polished = self._polish(state, gamma)
                if polished is not None:
                    yield polished
                    return
            if last:
                here = self._probe(state, here, penalty, self.method, stage_tol)
                here = self._at_kink(state, here, penalty)
                here = self._from_cold(state, here, gamma, penalty.tol)
                state.x = here.x
                yield _Candidate(state.x, gamma, extrapolate=False)
                better = self._improved(state, here, penalty)
                if better is not None:
                    yield _Candidate(better.x, gamma, extrapolate=False, anchor=state.x)
                return
            state.gamma, state.stage = gamma * self.schedule.factor, state.stage + 1
            try:
                self._save(state)
            except NotWrittenError as error:  # a disk that filled up on the way costs no answer
                warnings.warn(
                    f"{error}. The solve goes on; the last checkpoint stays", stacklevel=2
                )

    def _into_domain(self, state: _State) -> bool:
        """Move x to where the penalised problem has a feasible point; False where it was moved before, or cannot be."""
        if state.restored or not isinstance(self.model, CanRestore):
            return False
        state.restored = True
        with self.progress.timed("restoration"):
            state.x = state.interior = self.model.restore(state.x)
        state.level = self._level(state.interior)
        return True

    def _from_cold(
        self, state: _State, here: Evaluation, gamma: float, accuracy: float
    ) -> Evaluation:
        """Go on where other duals, found without warm starts, still show descent: at kinks they are not unique."""
        for _ in range(COLD_ROUNDS if self.method == "convex_concave" else 0):
            if state.iterations >= self.max_iterations:
                break
            self.warm = Warm()
            penalty = Penalty(self.model, gamma, tol=accuracy, warm=self.warm)
            try:
                cold = penalty(here.x)
                if self._first_order(cold, self.method) <= 0.5 * self.tol:
                    break
                state.x = here.x
                here = self._minimize(state, penalty, self.method, 0.3 * self.tol, COLD_STEPS)
            except LowerLevelError:
                break
        return here

    def _at_kink(self, state: _State, here: Evaluation, penalty: Penalty) -> Evaluation:
        """Gradient sampling from where smooth steps ended without a small gradient."""
        x_set = self.model.x_set
        if self.method == "convex_concave" or not isinstance(x_set, Box):
            return here
        if math.prod(here.x.shape) > LARGEST or state.iterations >= self.max_iterations:
            return here
        if descent.stationarity(here.x, here.gradient, x_set) <= self.tol:
            return here
        restore = None
        if isinstance(self.model, CanRestore):
            restore = functools.partial(self.model.restore, inside=INSIDE)
        with self.progress.timed("gradient sampling"):
            for accepted in gradient_sampling(
                penalty, here, x_set, tol=self.tol, max_iterations=30, restore=restore
            ):
                here = accepted
                self._record(state, here, "sampling", math.nan)
        return here

    def _probe(
        self, state: _State, here: Evaluation, oracle: Any, method: str, tol: float
    ) -> Evaluation:
        """Look a little way along single coordinates for descent that the gradient does not show.

        ``-gamma v`` has concave kinks, and at the edge of dom v the duals are not unique: a wrong dual can make a
        point look stationary. Where a probe falls, minimise from there.
        """
        xp = namespace(here.x)
        for _ in range(PROBE_ROUNDS):
            found = None
            for direction in _directions(here.x):
                x = self.model.x_set.project(here.x + 1e-3 * (1.0 + xp.abs(here.x)) * direction)
                if not bool(xp.any(x != here.x)):
                    continue
                try:
                    value = oracle.value(x)
                except LowerLevelError:
                    continue
                if value < here.value - max(tol, self.tol) * (1.0 + abs(here.value)):
                    found = x
                    break
            if found is None:
                return here
            before, state.x = here, found
            here = self._minimize(state, oracle, method, tol)
            if here.value >= before.value:
                state.x = before.x
                return before
            state.x = here.x
        return here

    def _polish(self, state: _State, gamma: float) -> _Candidate | None:
        """Minimise the true response from state.x; None unless it ends stationary and no worse."""
        method = "lbfgsb" if isinstance(self.model.x_set, Box) else "spectral"
        oracle = Response(self.model, gamma, tol=self.floor, warm=self.warm)
        try:
            start = oracle(state.x)
            if start.mismatch > self.tol:
                return None  # another active set than the response's: gamma is still too small
            state.polished, before = True, start.response
            there = self._minimize(state, oracle, method, self.tol)
        except LowerLevelError:
            return None
        if descent.stationarity(there.x, there.gradient, self.model.x_set) <= self.tol:
            there = self._probe(state, there, oracle, method, self.tol)
        left = descent.stationarity(there.x, there.gradient, self.model.x_set)
        if max(left, there.mismatch) > self.tol:
            return None  # a kink: only the penalty's stages end there
        if self.model.upper_violation(there.x, there.lower.y) > self.tol:
            return None  # the response breaks an upper constraint on y, which only the penalty sees
        if there.response > before + self.tol * (1.0 + abs(before)):
            return None
        state.x = there.x
        return _Candidate(there.x, gamma, extrapolate=True)

    def start(self, x0: Array | None) -> _State:
        """Relaxation, starting point, restoration."""
        bound, relaxed = None, None
        if isinstance(self.model, HasRelaxation):
            with self.progress.timed("relaxation"):
                relaxation = self.model.relaxation(tol=min(self.tol, 1e-6))
            bound, relaxed = relaxation.bound, relaxation.x
        if x0 is None:
            if relaxed is None:
                raise InvalidInputError("x0 is needed: this model has no relaxation to start from")
            x0 = relaxed
        x0 = starting_point("x0", x0, relaxed)
        shape = getattr(self.model, "x_shape", x0.shape)
        if x0.shape != shape:
            raise InvalidInputError(f"x0 has shape {x0.shape}, but the model's x has shape {shape}")
        x = self.model.x_set.project(x0)
        self.floor = getattr(self.model, "accuracy", 1e3 * precision(x))
        try:
            level = self._level(x)
        except LowerLevelError:
            if not isinstance(self.model, CanRestore):
                raise
            with self.progress.timed("restoration"):
                x = self.model.restore(x)
            level = self._level(x)
        gamma = self.schedule.start if self.fixed_gamma is None else self.fixed_gamma
        return _State(x=x, interior=x, gamma=gamma, level=level, bound=bound, relaxed_x=relaxed)

    def certify(self, candidate: _Candidate, state: _State) -> Certified:
        """Certificate of a candidate, at the tightest saddle points that the precision allows.

        A candidate at the edge of the lower level's domain can lie outside by less than its stage's tolerance: it is
        moved inside, as little as it takes.
        """
        with self.progress.timed("certificate"):
            for x in self._inside(candidate.x, state):
                for loosened in (
                    1e-4,
                    1e-3,
                    1e-2,
                    1e-1,
                    1.0,
                    1e2,
                ):  # of what stages ask for, as far as this x allows
                    try:
                        found = certify(
                            self.model,
                            x,
                            candidate.gamma,
                            anchor=candidate.anchor,
                            extrapolate=candidate.extrapolate,
                            bound=state.bound,
                            tol=self.tol,
                            saddle_tol=max(loosened * self.floor, 1e-13),
                        )
                        # a convex-concave step is judged by what its own majorant promises
                        own = self.fixed_gamma is not None or isinstance(
                            self.model, HasConvexConcaveStep
                        )
                        return found if own else _of_the_program(found, self.tol)
                    except LowerNotSolvedError as error:
                        failure: LowerLevelError = error
                    except LowerLevelError as error:
                        failure = error
                        break
            if isinstance(failure, LowerInfeasibleError):  # the start was inside
                raise LowerNotSolvedError(_OUTSIDE.format(failure)) from failure
            raise failure

    def _inside(self, x: Array, state: _State) -> Iterator[Array]:
        """x, the nearest point of the lower level's domain, and points towards the start, which is inside."""
        yield x
        if isinstance(self.model, CanRestore):
            with contextlib.suppress(LowerLevelError):
                yield self.model.restore(x, inside=INSIDE)
        for inward in (1e-9, 1e-8, 1e-7, 1e-6, 1e-4, 1e-2):
            yield x + inward * (state.interior - x)

    def _certified(self, stages: _State, state: _State) -> list[Certified]:
        """Certify what the stages find; raises only where that succeeds for none."""
        found: list[Certified] = []
        failure: LowerNotSolvedError | None = None
        for candidate in self.stages(stages):
            try:
                found.append(self.certify(candidate, state))
            except LowerNotSolvedError as error:
                failure = error
        if failure is not None and not found:
            raise failure
        return found

    def run(self, x0: Array | None, resume: str | os.PathLike[str] | None) -> Result:
        """Solve; the partial result is on the exception where it fails or is interrupted."""
        state: _State | None = None
        try:
            if resume is not None:
                state = self._load(resume, x0)
            else:
                state = self.start(x0)
                self._save(
                    state
                )  # a path that cannot be written is refused before the work, not after it
            found: list[Certified] = []
            if self._may_attain(state):
                try:
                    relaxed = self.certify(
                        _Candidate(state.relaxed_x, state.gamma, extrapolate=False), state
                    )
                    if relaxed.certificate.optimal(self.tol):
                        return self._result(relaxed, state)
                except LowerLevelError:
                    pass  # the relaxation's x need not have a lower-level answer
            found += self._certified(state, state)
            best = found[-1]
            slack = self.tol * (1.0 + abs(best.objective))
            if state.best_x is not None and state.best_response < best.objective - slack:
                # an earlier stage passed a better point: finish from there as well
                again = _State(
                    state.best_x,
                    state.interior,
                    state.gamma,
                    bound=state.bound,
                    iterations=state.iterations,
                )
                found += self._certified(again, state)
            return self._result(_pick(found, self.tol), state)
        except KeyboardInterrupt as interrupt:
            if state is None:
                raise
            x = state.best_x if state.best_x is not None else state.x
            partial = self.certify(_Candidate(x, state.gamma, extrapolate=False), state)
            result = self._result(partial, state, Status.INTERRUPTED)
            raise SolveInterrupted(
                "interrupted: the best point so far is in the exception's result", result
            ) from interrupt

    def _may_attain(self, state: _State) -> bool:
        """Whether the bound may be attained at the relaxation's x: a certificate, which costs more, decides."""
        if state.relaxed_x is None or state.bound is None or state.stage > 0:
            return False
        penalty = Penalty(self.model, state.gamma, tol=self._saddle_tol(self.tol, state.gamma))
        try:
            here = penalty(state.relaxed_x)
        except LowerNotSolvedError:
            return True  # at looser tolerances it may be
        except LowerLevelError:
            return False  # the relaxation's x need not have a lower-level answer
        level = state.bound + 10.0 * self.tol * (1.0 + abs(state.bound))
        left = here.penalty / (here.gamma * (1.0 + abs(here.lower.value)))
        return here.response <= level or left <= self.tol  # or y_F is a lower-level answer as well

    def _result(self, answer: Certified, state: _State, status: Status | None = None) -> Result:
        certificate = answer.certificate
        if status is None:
            if certificate.optimal(self.tol):
                status = Status.OPTIMAL
            elif certificate.ok(self.tol):
                status = Status.IMPROVED if certificate.moved else Status.STATIONARY
            elif not certificate.lower_ok(self.tol):
                status = Status.LOWER_NOT_SOLVED
            elif state.iterations >= self.max_iterations:
                status = Status.ITERATION_LIMIT
            else:
                status = Status.FEASIBLE
        message = status.value
        if status is Status.ITERATION_LIMIT:
            message += f" ({self.max_iterations}); raise max_iterations"
        elif status is Status.FEASIBLE:
            message += f" (residual {certificate.stationarity:.1e}); the upper objective may have a kink there"
        self.progress.timings["total"] = self.progress.seconds
        self.progress.status(
            f"status: {status.name.lower()}: {message}; objective "
            f"{self.progress.sense * answer.objective:.8g}"
        )
        return Result(
            x=answer.x,
            y=answer.y,
            objective=answer.objective,
            lower_objective=answer.lower_objective,
            bound=state.bound,
            status=status,
            duals=dict(answer.duals),
            certificate=certificate,
            records=tuple(self.progress.records),
            timings=dict(self.progress.timings),
            message=message,
        )

    def _save(self, state: _State) -> None:
        if self.checkpoint is None:
            return
        arrays = {"x": to_numpy(state.x), "interior": to_numpy(state.interior)}
        for name in ("best_x", "relaxed_x"):
            if getattr(state, name) is not None:
                arrays[name] = to_numpy(getattr(state, name))
        for part in ("lower", "penalized"):
            for key, value in (getattr(self.warm, part) or {}).items():
                arrays[f"warm/{part}/{key}"] = to_numpy(value)
        scalars = [
            "gamma",
            "level",
            "stage",
            "iterations",
            "polished",
            "bound",
            "best_response",
            "relative",
        ]
        meta = {
            "format": CHECKPOINT,
            "state": {name: getattr(state, name) for name in scalars},
            "records": self.progress.records,
            "problem": self._fingerprint(state.x),
        }
        write_archive(self.checkpoint, arrays, meta)

    def _fingerprint(self, x: Array) -> dict[str, Any]:
        return {
            "shape": list(x.shape),
            "method": self.method,
            "tol": self.tol,
            "fixed_gamma": self.fixed_gamma,
            "model": type(self.model).__name__,
            "units": list(getattr(self.model, "units", (1.0, 1.0))),
        }

    def _load(self, path: str | os.PathLike[str], x0: Array | None) -> _State:
        arrays, meta = read_archive(path, CHECKPOINT)
        try:
            state = self._restored(path, arrays, meta, x0)
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptFileError(
                f"{path}: not a complete blocc checkpoint ({error!r})"
            ) from error
        level = self._level(state.interior)
        if not abs(level - state.level) <= 1e-2 * (1.0 + abs(level)):
            raise InvalidInputError(
                f"{path}: checkpoint of another solve (the lower level's value at its first point was "
                f"{state.level:.6g}, and is {level:.6g}); start without resume"
            )
        return state

    def _level(self, x: Array) -> float:
        """Lower-level value, roughly: tells a checkpoint of other data."""
        return self.model.lower(x, tol=1e-3).value

    def _restored(
        self,
        path: str | os.PathLike[str],
        arrays: dict[str, Any],
        meta: dict[str, Any],
        x0: Array | None,
    ) -> _State:
        like = x0
        if like is None:
            like = asarray_like(arrays["x"], None)

        def array(name: str) -> Array | None:
            return asarray_like(arrays[name], like) if name in arrays else None

        x = asarray_like(arrays["x"], like)
        expected = self._fingerprint(x if x0 is None else x0)
        if meta["problem"] != expected:
            different = [k for k in expected if meta["problem"].get(k) != expected[k]]
            raise InvalidInputError(
                f"{path}: checkpoint of another solve ({', '.join(different)} differ); start without resume"
            )
        self.floor = getattr(self.model, "accuracy", 1e3 * precision(like))
        for part in ("lower", "penalized"):
            prefix = f"warm/{part}/"
            warm: dict[str, Array] = {}
            for key, value in arrays.items():
                if key.startswith(prefix):
                    floating = value.dtype.kind == "f"
                    warm[key[len(prefix) :]] = asarray_like(value, like) if floating else value
            if warm:
                setattr(self.warm, part, warm)
        self.progress.resume(meta["records"])
        return _State(
            x=x,
            interior=asarray_like(arrays["interior"], like),
            best_x=array("best_x"),
            relaxed_x=array("relaxed_x"),
            **meta["state"],
        )


def _of_the_program(found: Certified, tol: float) -> Certified:
    """What is stationary for a penalty that is far from the true upper value counts for no more than it is near."""
    certificate = found.certificate
    if math.isinf(certificate.gamma):  # extrapolated: of the true value
        return found
    left = abs(found.objective - certificate.penalized_objective) / (1.0 + abs(found.objective))
    if left <= max(NEAR * tol, certificate.stationarity):
        return found
    return replace(found, certificate=replace(certificate, stationarity=left))


def _left(here: Evaluation, tol: float) -> float:
    """How far F_gamma still is from the true upper value at this x, relative.

    The true value is the response's, or, where the penalised answer is another lower-level optimum that the upper
    level likes better, that answer's. A small ``gamma (g - v)`` alone says nothing while gamma is small.
    """
    size = 1.0 + abs(here.response)
    gap = max(here.penalty, 0.0) / here.gamma / (1.0 + abs(here.lower.value))
    gain = here.response - (here.value - here.penalty)
    if gap <= 1e-3 * tol and gain > 100.0 * math.sqrt(gap) * size:
        return abs(here.penalty) / size
    return abs(here.response - here.value) / size


def _directions(x: Array) -> Iterator[Array]:
    """Both ways along every coordinate where these are few, otherwise along a few random directions."""
    xp = namespace(x)
    size = math.prod(x.shape)
    if size > PROBES // 2:
        for seed in range(PROBES // 2):
            direction = random_signs(x, seed)
            yield from (direction, -direction)
        return
    positions = xp.reshape(
        xp.cumulative_sum(xp.ones((size,), dtype=x.dtype, device=device_of(x))), x.shape
    )
    for index in range(1, size + 1):
        direction = xp.astype(positions == index, x.dtype)
        yield from (direction, -direction)


def _pick(found: list[Certified], tol: float) -> Certified:
    """The best certified answer; where none is, the best whose lower level is solved."""

    def rank(answer: Certified) -> tuple[bool, float]:
        return (not answer.certificate.lower_ok(tol), answer.objective)

    best = min(found, key=rank)
    certified = [a for a in found if a.certificate.ok(tol)]
    if certified:
        stationary = min(certified, key=rank)
        if stationary.objective <= best.objective + tol * (1.0 + abs(best.objective)):
            return stationary
    return best


def solve(
    model: Model,
    x0: Array | None = None,
    *,
    gamma: float | None = None,
    method: Method = "auto",
    tol: float = 1e-6,
    max_iterations: int = 2000,
    progress: Progress | None = None,
    on_failure: OnFailure = "raise",
    checkpoint: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> Result:
    """Solve a bilevel program given as a :class:`blocc.model.Model`.

    Parameters
    ----------
    model : Model
    x0 : array, optional
        Starting point, projected on X. Default: the relaxation's answer, where the model has one.
    gamma : float, optional
        Fix gamma (the published method's way) instead of raising it in stages.
    method : {"auto", "convex_concave", "lbfgsb", "spectral"}
        Outer steps; "auto" takes the first that the model supports.
    tol : float
        Relative tolerance of the certificate.
    max_iterations : int
        Accepted outer iterations, over all stages.
    progress : Progress, optional
        Collects and prints the iterations.
    on_failure : {"raise", "return"}
        What to do with an answer that is not certified.
    checkpoint : path, optional
        Written at the start and after every gamma stage.
    resume : path, optional
        Continue from a checkpoint of the same problem and options.

    Returns
    -------
    Result

    Raises
    ------
    SolveError
        If no certified answer was found; its ``result`` has the best one.
    UpperUnboundedError
        If the upper objective falls without end.
    SolveInterrupted
        On Ctrl-C; its ``result`` has the best point so far.
    LowerLevelError
        If the lower level has no answer at the start and could not be restored.
    InvalidInputError
        On a wrong option or a checkpoint of another problem.
    """
    if on_failure not in ("raise", "return"):
        raise InvalidInputError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")
    missing = [name for name in MODEL if not hasattr(model, name)]
    if missing:
        raise InvalidInputError(
            f"model must be a blocc.Model, got {type(model).__name__} without {', '.join(missing)}"
        )
    progress = progress if progress is not None else Progress()
    homotopy = Homotopy(
        model,
        gamma=gamma,
        method=method,
        tol=tol,
        max_iterations=max_iterations,
        progress=progress,
        checkpoint=checkpoint,
    )
    progress.header(f"blocc: {type(model).__name__}, method {homotopy.method}, tol {tol:.0e}")
    result = homotopy.run(x0, resume)
    if on_failure == "raise" and not result.success:
        raise SolveError(f"{result.message}. The answer is in this exception's result", result)
    return result
