"""SVM hyperparameter selection."""

from blocc.applications.svm.slack_bounds import SlackBoundProblem

__all__ = ["SlackBoundProblem"]
