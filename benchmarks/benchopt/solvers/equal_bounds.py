"""The best single bound for all rows, by bounded scalar search on the exact response: what blocc has to beat."""

from __future__ import annotations

import numpy as np
from benchopt import BaseSolver
from scipy.optimize import minimize_scalar

from blocc.errors import LowerLevelError


class Solver(BaseSolver):
    """One number for every row."""

    name = "equal bounds"
    sampling_strategy = "iteration"

    def set_objective(self, problem, rows):
        self.problem, self.rows = problem, rows

    def run(self, n_iter):
        found = minimize_scalar(
            self._value, bounds=(0.0, 4.0), method="bounded", options={"maxiter": n_iter + 1}
        )
        self.bound = float(found.x)

    def _value(self, bound):
        c = np.full(self.rows, bound)
        try:
            return self.problem.model.upper(c, self.problem.respond(c).y)
        except LowerLevelError:
            return 1e12 * (5.0 - bound)  # larger bounds leave more room

    def get_result(self):
        return {"c": np.full(self.rows, self.bound)}
