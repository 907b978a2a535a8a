"""benchopt: slack bounds of an SVM by bilevel optimisation, the study's problem of arXiv:2406.10148.

    pip install benchopt && benchopt run benchmarks/benchopt -e

A solver returns slack bounds c, one a training row. They are scored by the true upper objective: the lower level is
solved to the end at that c, whatever the solver believes of it. Add a solver as a file in ``solvers/``.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from benchopt import BaseObjective

from blocc.applications.svm import SlackBoundProblem
from blocc.errors import LowerLevelError


class Objective(BaseObjective):
    """True upper objective at the exact lower-level response; inf where no separator meets the margins of c."""

    name = "SVM slack bounds"
    min_benchopt_version = "1.6"
    parameters: ClassVar = {"upper": ["squared", "norm"]}

    def set_data(self, X_train, y_train, X_val, y_val):
        self.problem = SlackBoundProblem(X_train, y_train, X_val, y_val, upper=self.upper)
        self.rows = len(y_train)

    def evaluate_result(self, c):
        c = np.maximum(np.asarray(c, dtype=float), 0.0)
        try:
            return {"value": self.problem.model.upper(c, self.problem.respond(c).y)}
        except LowerLevelError:
            return {"value": np.inf}

    def get_one_result(self):
        return {"c": np.ones(self.rows)}

    def get_objective(self):
        return {"problem": self.problem, "rows": self.rows}
