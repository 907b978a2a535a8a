"""What the baselines share: the data of one split and the answer of a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any


@dataclass(frozen=True)
class Problem:
    """Signed rows ``l (z, 1)`` of the training and the validation set, and the upper regulariser."""

    train: Array
    validation: Array
    upper: str  # "squared" or "norm"
    intercept_penalty: float = 0.0

    @property
    def curvature(self) -> Array:
        """Diagonal of the lower objective's Hessian in (w, b)."""
        diagonal = np.ones(self.train.shape[1])
        diagonal[-1] = self.intercept_penalty
        return diagonal

    def upper_value(self, c: Array, y: Array) -> float:
        """The upper objective."""
        losses = float(np.sum(np.exp(1.0 - self.validation @ y)))
        return losses + (
            0.5 * float(c @ c) if self.upper == "squared" else float(np.linalg.norm(c))
        )

    def gradient_c(self, c: Array) -> Array:
        """Gradient of the regulariser."""
        return c if self.upper == "squared" else c / max(float(np.linalg.norm(c)), 1e-300)

    def gradient_y(self, y: Array) -> Array:
        """Gradient of the validation losses in (w, b)."""
        return -self.validation.T @ np.exp(1.0 - self.validation @ y)


@dataclass(frozen=True)
class Outcome:
    """Slack bounds and the separator a method ends with."""

    c: Array
    y: Array
