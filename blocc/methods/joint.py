"""Placeholder."""
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Derivatives:
    """First derivatives."""

    upper: float
    upper_gradient: Any
    lower: float
    lower_gradient: Any
    inequality: Any
    inequality_jacobian: Any
    equality: Any
    equality_jacobian: Any
