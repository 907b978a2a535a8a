"""Every exception that blocc raises on purpose, each naming the culprit and the remedy."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blocc.result import Result


#: Growth of x, from its start, beyond which an objective that still falls in proportion is taken to have no minimum.
RUNAWAY = 1e8


class BloccError(Exception):
    """Base class of all errors raised by blocc."""


class InvalidInputError(BloccError, ValueError):
    """The input is wrong: a shape, a value, a file, a name. The message says which and what to do."""


class NotWrittenError(InvalidInputError, OSError):
    """A file cannot be written: read-only directory, full disk. What was there before is still there, whole."""


class UnsupportedModelError(BloccError):
    """The model is outside what blocc can solve; the message names the offending part."""


class MissingDependencyError(BloccError, ImportError):
    """An optional dependency is not installed; the message has the pip line."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with:  pip install 'blocc[{extra}]'"
        )


class BackendUnavailableError(BloccError, RuntimeError):
    """The requested array backend (cupy) is missing or has no usable device."""


class LowerLevelError(BloccError):
    """The lower level has no answer at this upper point x. Line searches step back from it."""


class LowerInfeasibleError(LowerLevelError):
    """No y satisfies the lower level's constraints at this x.

    Attributes
    ----------
    ray : tuple of (array, mapping of str to array) or None
        Proof of infeasibility, where the solver found one: a point y and multipliers whose combination of the
        constraints is positive for every y.
    normal : array or None
        Its gradient in x: the direction in x that leads further out of the lower level's domain.
    """

    ray: Any = None
    normal: Any = None


class LowerUnboundedError(LowerLevelError):
    """The lower-level objective is unbounded below at this x."""


class LowerNotSolvedError(LowerLevelError):
    """The lower-level solver stopped before reaching its tolerance."""


class SolveError(BloccError, RuntimeError):
    """A solve ended without a certified answer. The partial answer is in ``result``."""

    def __init__(self, message: str, result: Result | None = None) -> None:
        super().__init__(message)
        self.result = result


class UpperUnboundedError(SolveError):
    """The upper objective falls without end along an upper variable: bound it, or look at a sign."""

    def __init__(self, size: float) -> None:
        super().__init__(
            f"the upper objective has no minimum: it still falls in proportion at upper variables of size {size:.0e}. "
            "Bound them, or look at the objective's sign"
        )


class SolveInterrupted(KeyboardInterrupt):
    """Ctrl-C during a solve. The best answer so far is in ``result``; its checkpoint can be resumed."""

    def __init__(self, message: str, result: Result | None = None) -> None:
        super().__init__(message)
        self.result = result


class CorruptFileError(BloccError, ValueError):
    """A saved result or checkpoint cannot be read. Nothing in it was executed."""


def require_number(name: str, value: Any, kind: type) -> None:
    """Refuse an option that is no number (``numbers.Real``, or whole, ``numbers.Integral``) before it is compared."""
    if not isinstance(value, kind):
        expected = "a whole number" if kind is Integral else "a number"
        raise InvalidInputError(f"{name} must be {expected}, got {value!r}")


def require(package: str, extra: str, purpose: str) -> Any:
    """Import an optional package, or say how to install it.

    Parameters
    ----------
    package : str
        Import name, for example ``"pandas"``.
    extra : str
        The extra of blocc that brings it, for example ``"transport"``.
    purpose : str
        What needs it, the subject of the error's sentence.

    Returns
    -------
    module

    Raises
    ------
    MissingDependencyError
        If the package is not installed.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(package, extra, purpose) from error
