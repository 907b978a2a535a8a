"""One random program solved in one form, in a limit of CPU time, and its claim put to the test."""

from __future__ import annotations

import signal
import time
import warnings
from dataclasses import dataclass
from typing import Any

import blocc
from blocc.errors import BloccError
from tests.robust import oracle
from tests.robust.programs import HOPELESS, Program

FORMS = ("cvxpy", "functional")


class OutOfTime(BaseException):
    """The limit of CPU time is reached. Not an Exception, so that no handler in a library keeps it."""


@dataclass(frozen=True)
class Outcome:
    """What came of one program.

    ``word`` is the status's name, an error's class, ``"infeasible, proven"`` where exact arithmetic bears the refusal
    out, ``"out of time"`` or ``"crash: ..."``. ``false`` says what is wrong with the claim, where something is.
    """

    seed: int
    family: str
    form: str
    n: int
    m: int
    word: str
    false: str | None
    seconds: float
    gap: float | None
    message: str

    @property
    def certified(self) -> bool:
        return self.word in oracle.SUCCESS


def solve(program: Program, form: str, **options: Any) -> blocc.Result:
    if form == "cvxpy":
        return program.bilevel_problem().solve(on_failure="return", **options)
    return blocc.minimize(**program.functions(), on_failure="return", **options)


def attempt(program: Program, form: str, limit: float = 30.0) -> Outcome:
    """Solve and refute; only in a main thread, for its signal."""

    def ring(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGPROF, ring)
    result, message, gap = None, "", None
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=RuntimeWarning, module="blocc")
            result = solve(program, form)
        word, message, gap = result.status.name, result.message, result.certificate.lower_gap
    except BloccError as error:
        word, message = type(error).__name__, str(error)
    except OutOfTime:
        word = "out of time"
    except Exception as error:
        word, message = f"crash: {type(error).__name__}", str(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    seconds = time.process_time() - began
    false = None
    if word == "LowerInfeasibleError":
        if oracle.proven_infeasible(program):
            word = "infeasible, proven"
        else:
            x = oracle.feasible_x(program)
            if x is not None and oracle.respond(program, x) is not None:
                false = "called infeasible, and is not"
    if result is not None:
        false = oracle.refute(program, oracle.claim(result))
        if result.success and program.family in HOPELESS:
            false = "claims an answer where there is none"
    return Outcome(
        program.seed,
        program.family,
        form,
        program.n,
        program.m,
        word,
        false,
        seconds,
        gap,
        message[:200],
    )
