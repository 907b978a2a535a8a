"""blocc: the relaxation, certified by the lower level's own answer."""

from __future__ import annotations

from benchopt import BaseSolver


class Solver(BaseSolver):
    """No settings."""

    name = "blocc"
    sampling_strategy = "run_once"

    def set_objective(self, problem, rows):
        self.problem = problem

    def run(self, _):
        self.c = self.problem.solve(on_failure="return").x

    def get_result(self):
        return {"c": self.c}
