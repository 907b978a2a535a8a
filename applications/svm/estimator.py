"""Support vector machines for scikit-learn that tune themselves by cross-validation, as a bilevel problem."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from blocc.applications.svm import box_svm
from blocc.applications.svm.cross_validation import (
    CrossValidationModel,
    Fold,
    KernelMap,
    Losses,
    Tuning,
    absolute_losses,
    hinge_losses,
    solve_best,
    tube_losses,
    tune,
)

Array = Any
LOG_C = (math.log(1e-5), math.log(1e5))


@dataclass(frozen=True)
class _Machine:
    """One tuned and refitted machine."""

    tuning: Tuning
    C: float
    width: float | None
    bound: Array | None
    w: Array
    b: float
    folds: list[dict[str, float]]


def _fold_table(folds: list[Fold], y: Array) -> list[dict[str, float]]:
    """Size, validation loss and share of wrong signs of every fold, at its own weights."""
    table = []
    points = y.reshape(len(folds), -1)
    for index, (fold, point) in enumerate(zip(folds, points, strict=True)):
        part = fold.validation
        values = part.rows @ point[:-1] + part.signs * point[-1]
        table.append(
            {
                "fold": index,
                "rows": len(part.signs) if part.samples is None else part.samples,
                "validation_loss": part.mean(point[:-1], float(point[-1])),
                "validation_error": float(part.weights @ (values <= 0)) / part.total,
                "largest_weight": float(np.max(np.abs(point[:-1]))),
            }
        )
    return table


class _BilevelSVM(BaseEstimator):  # type: ignore[misc]
    """What the classifier and the regressor share: folds, tuning, the refit."""

    def __init__(
        self,
        folds: int = 5,
        feature_bounds: bool = True,
        kernel: Literal["linear", "rbf"] = "linear",
        n_jobs: int | None = None,
        random_state: Any = None,
        n_components: int = 100,
    ):
        self.folds = folds
        self.feature_bounds = feature_bounds
        self.kernel = kernel
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.n_components = n_components

    def _check_parameters(self, samples: int) -> None:
        if self.kernel not in ("linear", "rbf"):
            raise ValueError(f"kernel must be 'linear' or 'rbf', got {self.kernel!r}")
        if not isinstance(self.folds, (int, np.integer)) or self.folds < 2:
            raise ValueError(f"folds must be an integer of at least 2, got {self.folds!r}")
        if not isinstance(self.n_components, (int, np.integer)) or self.n_components < 1:
            raise ValueError(f"n_components must be a positive integer, got {self.n_components!r}")
        if samples < self.folds:
            raise ValueError(
                f"folds={self.folds} cannot be greater than the number of samples, n_samples={samples}"
            )

    def _split(self, strata: Array, random: np.random.RandomState) -> Array:
        """Fold of every distinct row, and a warning where there are fewer rows than folds in some class."""
        self.folds_ = min(int(self.folds), len(strata))
        _, counts = np.unique(strata, return_counts=True)
        if self.folds_ < self.folds:
            warnings.warn(
                f"only {len(strata)} distinct samples: folds={self.folds} lowered to {self.folds_}",
                UserWarning,
                stacklevel=3,
            )
        elif (smallest := int(np.min(counts))) < self.folds:
            warnings.warn(
                f"the least populated class has {smallest} distinct samples, fewer than "
                f"folds={self.folds}: some folds lack it",
                UserWarning,
                stacklevel=3,
            )
        return self._assign(strata, random)

    def _distinct(self, X: Array, y: Array, weight: Array) -> tuple[Array, Array, Array]:
        """Distinct rows in sorted order, with summed weights; rows of weight 0 are dropped.

        Copies of a sample must not be split between training and validation, and a weight must mean what repeating
        the row means; the answer does not depend on the order of the rows either.
        """
        if np.any(weight < 0):
            raise ValueError("sample_weight must not be negative")
        kept = weight > 0
        if not kept.any():
            raise ValueError("every sample_weight is zero")
        rows, inverse = np.unique(np.column_stack([y[kept], X[kept]]), axis=0, return_inverse=True)
        summed = np.bincount(inverse.ravel(), weights=weight[kept])
        return rows[:, 1:], rows[:, 0], summed

    def _assign(self, strata: Array, random: np.random.RandomState) -> Array:
        """Fold of every row: each stratum is shuffled and dealt out in turn."""
        fold = np.empty(len(strata), dtype=int)
        dealt = 0
        for stratum in np.unique(strata):
            members = random.permutation(np.flatnonzero(strata == stratum))
            fold[members] = (dealt + np.arange(len(members))) % self.folds_
            dealt += len(members)
        return fold

    def fold_of(self, X: Any, y: Any) -> Array:
        """Fold that fit put every row of its own training data in; for comparing with other searches.

        Parameters
        ----------
        X, y : array_like
            The data given to fit.

        Raises
        ------
        ValueError
            For a row that fit has not seen.
        """
        check_is_fitted(self)
        y = np.asarray(y)
        codes = np.searchsorted(self.classes_, y) if hasattr(self, "classes_") else y
        seen = {row.tobytes(): int(fold) for row, fold in zip(*self._assigned, strict=True)}
        rows = np.column_stack([codes, np.asarray(X)]).astype(float) + 0.0
        try:
            return np.array([seen[row.tobytes()] for row in rows])
        except KeyError as error:
            raise ValueError("fold_of: a row that fit has not seen") from error

    def _threads(self) -> int:
        if self.n_jobs is None:
            return 1
        jobs = int(self.n_jobs)
        if jobs == 0:
            raise ValueError(
                "n_jobs must not be 0; use None, a positive number, or -1 for all cores"
            )
        return jobs if jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + jobs)

    def _landmarks(self, X: Array, random: np.random.RandomState) -> Array | None:
        if self.kernel == "linear":
            return None
        count = min(int(self.n_components), len(X))
        return X[np.sort(random.choice(len(X), count, replace=False))]

    def _machine(
        self,
        X: Array,
        fold: Array,
        train_losses: Any,
        validation_losses: Any,
        landmarks: Array | None,
    ) -> _Machine:
        """Tune on the folds and refit on everything.

        ``train_losses(Z, rows)`` and ``validation_losses(Z, rows)`` make the losses of rows of a feature matrix.
        """

        def folds_of(Z: Array) -> list[Fold]:
            return [
                Fold(
                    train_losses(Z, np.flatnonzero(fold != index)),
                    validation_losses(Z, np.flatnonzero(fold == index)),
                )
                for index in range(self.folds_)
            ]

        kernel_map = None if landmarks is None else KernelMap(X, landmarks)
        center = np.zeros(X.shape[1])
        if kernel_map is None:
            # the intercept is free, so this changes nothing but the rounding errors
            center = np.mean(X, axis=0)
            X = X - center
        bounded = self.feature_bounds and kernel_map is None
        plain_folds = folds_of(X) if kernel_map is None else None

        def make_model(largest_bound: Array | None) -> CrossValidationModel:
            return CrossValidationModel(
                plain_folds if plain_folds is not None else folds_of,
                LOG_C,
                largest_bound if bounded else None,
                self._threads(),
                kernel_map,
            )

        tuning = tune(make_model)
        x = tuning.result.x
        C, width, Z = math.exp(float(x[0])), None, X
        if kernel_map is not None:
            width = math.exp(float(x[1]))
            Z = kernel_map.features(width)
        bound = x[1:] if bounded else None
        everything = train_losses(Z, np.arange(len(X)))
        problem = box_svm.BoxSVM(
            everything.rows,
            everything.signs,
            everything.targets,
            everything.weights,
            1.0 / C,
            np.full(Z.shape[1], math.inf) if bound is None else bound,
        )
        answer = solve_best([problem])[0]
        shift = 0.0 if kernel_map is not None else float(answer.w @ center)
        table = _fold_table(make_model(None).at(x), tuning.result.y)
        return _Machine(tuning, C, width, bound, answer.w, answer.b - shift, table)

    def _publish(self, machines: list[_Machine], features: int) -> None:
        """Set the attributes that all kernels and tasks share."""
        self._machines = machines
        single = len(machines) == 1
        results = [machine.tuning.result for machine in machines]
        self.result_ = results[0] if single else results
        self.validation_loss_ = float(np.mean([result.objective for result in results]))
        self.fold_tables_ = [machine.folds for machine in machines]
        C = np.array([machine.C for machine in machines])
        self.best_params_: dict[str, Any] = {"C": float(C[0]) if single else C}
        if self.kernel == "rbf":
            widths = np.array([machine.width for machine in machines])
            self.best_params_["gamma"] = float(widths[0]) if single else widths
            return
        coefficients = np.array([machine.w for machine in machines])
        self.coef_ = coefficients
        self.intercept_ = np.array([machine.b for machine in machines])
        sizes = []
        for machine in machines:
            points = machine.tuning.result.y.reshape(self.folds_, features + 1)[:, :-1]
            largest = np.max(np.abs(points), axis=0)
            sizes.append(largest if machine.bound is None else np.minimum(machine.bound, largest))
        if machines[0].bound is not None:
            bounds = np.array([machine.bound for machine in machines])
            self.best_params_["feature_bounds"] = bounds[0] if single else bounds
        total = np.sum(sizes, axis=0)
        self.feature_importances_ = total / total.sum() if total.sum() > 0 else total

    def _decision(self, X: Array) -> Array:
        """Values of all machines, one a column."""
        columns = []
        for machine in self._machines:
            Z = X
            if self.kernel == "rbf":
                Z = KernelMap(X, self.landmarks_).features(machine.width)
            columns.append(Z @ machine.w + machine.b)
        return np.column_stack(columns)


class BilevelSVC(ClassifierMixin, _BilevelSVM):  # type: ignore[misc]
    """Linear (or RBF) support vector classifier that selects C and bounds on its weights by cross-validation.

    The selection is one bilevel problem: the upper level chooses C and a bound on every feature's weight to minimise
    the mean validation hinge loss; the lower level trains one machine a fold under those bounds. It is never worse,
    on that loss, than the best of a grid of 13 values of C without bounds. The machine is refitted on all rows. Scale
    the features first (``StandardScaler`` in a pipeline): weights and their bounds are in the features' units.

    Parameters
    ----------
    folds : int
        Cross-validation folds. Rows are distinct samples: copies of a sample stay in one fold.
    feature_bounds : bool
        Whether to select bounds on the weights (linear kernel only).
    kernel : {"linear", "rbf"}
        "rbf" maps the rows to Nystroem features and selects C and the kernel's gamma.
    n_jobs : int or None
        Threads for the folds; -1 for all cores.
    random_state : int, RandomState or None
        Fold assignment and the Nystroem landmarks.
    n_components : int
        Nystroem landmarks at most (kernel "rbf").

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
    coef_ : array of shape (1 or n_classes, n_features)
        Linear kernel only; one row a class for more than two classes (one versus rest).
    intercept_ : array of shape (1 or n_classes,)
    best_params_ : dict
        ``C``, and ``feature_bounds`` or ``gamma``; with a leading axis of classes for more than two.
    validation_loss_ : float
        Mean validation hinge loss at the selected parameters (mean over classes).
    feature_importances_ : array of shape (n_features,)
        Bounds, clipped to the largest weight that any fold uses, as shares of their sum; 0 means switched off.
    fold_tables_ : list of list of dict
        Size, validation loss and error of every fold; one list a machine.
    result_ : Result, or list of Result for more than two classes
        Its status is ``FEASIBLE`` as a rule: every fold's machine is certified optimal for the returned C and bounds,
        which are the best met within a budget of evaluations, not a stationary point (``certificate.stationarity``
        says how far from one). ``STATIONARY`` where that residual is at most 1e-6, ``LOWER_NOT_SOLVED`` where a
        machine is not optimal to 1e-6. No status claims a global optimum.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    References
    ----------
    Bennett, Hu, Ji, Kunapuli, Pang: Model selection via bilevel optimization. IJCNN 2006.
    Kunapuli, Bennett, Hu, Pang: Classification model selection via bilevel programming. Optimization Methods and
    Software 2008.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from blocc.applications.svm import BilevelSVC
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), BilevelSVC(random_state=0)).fit(X, y)
    >>> model.score(X, y) > 0.97
    True
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BilevelSVC:
        """Select the parameters by cross-validation and refit on all rows.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            Dense; sparse input raises TypeError.
        y : array_like of shape (n_samples,)
        sample_weight : array_like of shape (n_samples,), optional
            Weight 0 leaves a row out; weight 2 counts it twice.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        self._check_parameters(len(X))
        self.classes_, codes = np.unique(y, return_inverse=True)
        X, codes, weight = self._distinct(X, codes.astype(float), weight)
        labels = codes.astype(int)
        present = np.unique(labels)
        if len(present) < 2:
            raise ValueError(
                "BilevelSVC needs samples of at least 2 classes, but the data has one class only: "
                f"{self.classes_[present[0]]!r}"
            )
        random = check_random_state(self.random_state)
        fold = self._split(labels, random)
        self._assigned = (np.column_stack([codes, X]) + 0.0, fold)
        self.landmarks_ = self._landmarks(X, random)
        machines = []
        for positive in [1] if len(self.classes_) == 2 else range(len(self.classes_)):
            signs = np.where(labels == positive, 1.0, -1.0)

            def losses(Z: Array, rows: Array, signs: Array = signs) -> Losses:
                return hinge_losses(Z[rows], signs[rows], weight[rows])

            machines.append(self._machine(X, fold, losses, losses, self.landmarks_))
        self._publish(machines, X.shape[1])
        return self

    def __getattr__(self, name: str) -> Any:
        """Say what to do about probabilities, which this machine does not have."""
        if name in ("predict_proba", "predict_log_proba"):
            raise AttributeError(
                f"BilevelSVC has no {name}: its scores are not probabilities, as in LinearSVC. Use "
                "decision_function, or wrap it in sklearn.calibration.CalibratedClassifierCV"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def decision_function(self, X: Any) -> Array:
        """Signed scores: shape (n_samples,) for two classes, (n_samples, n_classes) otherwise."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores = self._decision(X)
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> Array:
        """Class labels."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return self.classes_[(scores > 0).astype(int)]
        return self.classes_[np.argmax(scores, axis=1)]


class BilevelSVR(RegressorMixin, _BilevelSVM):  # type: ignore[misc]
    """Epsilon-insensitive support vector regression that selects C and bounds on its weights by cross-validation.

    The upper level minimises the mean absolute validation error (Bennett et al. 2006); the rest is as in
    :class:`BilevelSVC`.

    Parameters
    ----------
    folds, feature_bounds, kernel, n_jobs, random_state, n_components
        See :class:`BilevelSVC`.
    epsilon : float
        Half-width of the tube without loss, in the units of y.

    Attributes
    ----------
    coef_ : array of shape (n_features,)
    intercept_ : float
    best_params_, validation_loss_, feature_importances_, result_
        See :class:`BilevelSVC`; the validation loss is the mean absolute error.
    """

    def __init__(
        self,
        folds: int = 5,
        feature_bounds: bool = True,
        kernel: Literal["linear", "rbf"] = "linear",
        n_jobs: int | None = None,
        random_state: Any = None,
        n_components: int = 100,
        epsilon: float = 0.1,
    ):
        super().__init__(folds, feature_bounds, kernel, n_jobs, random_state, n_components)
        self.epsilon = epsilon

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BilevelSVR:
        """Select the parameters by cross-validation and refit on all rows; see :meth:`BilevelSVC.fit`."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        if not 0 <= self.epsilon < math.inf:
            raise ValueError(f"epsilon must be finite and >= 0, got {self.epsilon!r}")
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        self._check_parameters(len(X))
        X, y, weight = self._distinct(X, y.astype(float), weight)
        if len(y) < 2:
            raise ValueError("BilevelSVR needs at least 2 distinct samples; all rows are the same")
        random = check_random_state(self.random_state)
        fold = self._split(np.zeros(len(y)), random)
        self._assigned = (np.column_stack([y, X]) + 0.0, fold)
        self.landmarks_ = self._landmarks(X, random)

        def train(Z: Array, rows: Array) -> Losses:
            return tube_losses(Z[rows], y[rows], weight[rows], self.epsilon)

        def validation(Z: Array, rows: Array) -> Losses:
            return absolute_losses(Z[rows], y[rows], weight[rows])

        self._publish([self._machine(X, fold, train, validation, self.landmarks_)], X.shape[1])
        if self.kernel == "linear":
            self.coef_, self.intercept_ = self.coef_[0], self.intercept_[0]
        return self

    def predict(self, X: Any) -> Array:
        """Predicted values."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self._decision(X)[:, 0]
