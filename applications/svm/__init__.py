"""SVM hyperparameter selection: the BLOCC study's problem, and estimators that tune themselves."""

from typing import TYPE_CHECKING, Any

from blocc.applications.svm.slack_bounds import SlackBoundProblem

if TYPE_CHECKING:
    from blocc.applications.svm.estimator import BilevelSVC, BilevelSVR

__all__ = ["BilevelSVC", "BilevelSVR", "SlackBoundProblem"]


def __getattr__(name: str) -> Any:
    """Import the estimators on first use: they need scikit-learn, the rest does not."""
    if name in ("BilevelSVC", "BilevelSVR"):
        from blocc.errors import require

        require("sklearn", "svm", name)
        return getattr(require("blocc.applications.svm.estimator", "svm", name), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
