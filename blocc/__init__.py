"""blocc: bilevel optimisation with coupled constraints.

Every answer comes with its certificate. See https://arxiv.org/abs/2406.10148 for the method.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from blocc.arrays import namespace
from blocc.certificate import Certificate
from blocc.errors import (
    BackendUnavailableError,
    BloccError,
    CorruptFileError,
    InvalidInputError,
    LowerInfeasibleError,
    LowerLevelError,
    LowerNotSolvedError,
    LowerUnboundedError,
    MissingDependencyError,
    NotWrittenError,
    SolveError,
    SolveInterrupted,
    UnsupportedModelError,
    UpperUnboundedError,
)
from blocc.functional import FunctionalModel, minimize
from blocc.gradients import Function, check_gradients
from blocc.methods.homotopy import solve
from blocc.model import LowerResiduals, Model, Relaxation, Saddle, Schedule
from blocc.result import Result, Status
from blocc.sets import Ball, Box, ConvexSet, Free, NonNegative, Simplex

try:
    __version__ = version("blocc")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

_LAZY = {
    "BilevelProblem": "blocc.cvx",
    "LowerProblem": "blocc.cvx",
}  # cvxpy takes a second to import


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'blocc' has no attribute {name!r}")


__all__ = [
    "BackendUnavailableError",
    "Ball",
    "BilevelProblem",
    "BloccError",
    "Box",
    "Certificate",
    "ConvexSet",
    "CorruptFileError",
    "Free",
    "Function",
    "FunctionalModel",
    "InvalidInputError",
    "LowerInfeasibleError",
    "LowerLevelError",
    "LowerNotSolvedError",
    "LowerProblem",
    "LowerResiduals",
    "LowerUnboundedError",
    "MissingDependencyError",
    "Model",
    "NonNegative",
    "NotWrittenError",
    "Relaxation",
    "Result",
    "Saddle",
    "Schedule",
    "Simplex",
    "SolveError",
    "SolveInterrupted",
    "Status",
    "UnsupportedModelError",
    "UpperUnboundedError",
    "__version__",
    "check_gradients",
    "minimize",
    "namespace",
    "solve",
]
