"""BilevelSVC and BilevelSVR as scikit-learn estimators."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris, make_classification, make_moons, make_regression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR
from sklearn.utils.estimator_checks import check_estimator

import blocc
from benchmarks.svm_study import irrelevant_features
from blocc.applications.svm import BilevelSVC, BilevelSVR


def failed_checks(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(estimator, on_fail=None)
    assert len(results) > 30
    return [(r["check_name"], r["exception"]) for r in results if r["status"] == "failed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [
        BilevelSVC(random_state=0),
        BilevelSVC(kernel="rbf", n_components=10, folds=2, random_state=0),
        BilevelSVR(random_state=0),
        BilevelSVR(kernel="rbf", n_components=10, folds=2, random_state=0),
    ],
    ids=repr,
)
def test_scikit_learn_contract(estimator):
    assert failed_checks(estimator) == []


def test_scikit_learn_contract_of_the_smallest_setting():
    assert failed_checks(BilevelSVC(folds=2, feature_bounds=False, random_state=0)) == []


@pytest.fixture(scope="module")
def two_classes():
    return make_classification(
        160, 8, n_informative=3, n_redundant=0, shuffle=False, random_state=0, flip_y=0.05
    )


@pytest.fixture(scope="module")
def fitted(two_classes):
    return BilevelSVC(folds=3, random_state=0).fit(*two_classes)


def test_attributes(fitted, two_classes):
    X, y = two_classes
    assert fitted.coef_.shape == (1, 8)
    assert fitted.decision_function(X) == pytest.approx(X @ fitted.coef_[0] + fitted.intercept_[0])
    assert fitted.score(X, y) >= SVC(kernel="linear").fit(X, y).score(X, y) - 0.03
    assert fitted.result_.certificate.lower_ok(1e-6)
    assert fitted.validation_loss_ == fitted.result_.objective
    assert fitted.best_params_["C"] > 0
    assert np.all(np.abs(fitted.coef_[0]) <= fitted.best_params_["feature_bounds"] + 1e-12)
    assert fitted.feature_importances_.sum() == pytest.approx(1.0)
    assert fitted.feature_importances_[:3].sum() > 0.5  # the informative ones


def test_validation_loss_is_what_scikit_learn_measures_with_the_same_parameters(two_classes):
    X, y = two_classes
    model = BilevelSVC(folds=3, feature_bounds=False, random_state=0).fit(X, y)
    fold = model.fold_of(X, y)
    losses = []
    for index in range(3):
        train = fold != index
        machine = SVC(kernel="linear", C=model.best_params_["C"], tol=1e-8).fit(X[train], y[train])
        signs = 2.0 * y[~train] - 1.0
        losses.append(np.mean(np.maximum(0, 1 - signs * machine.decision_function(X[~train]))))
    assert model.validation_loss_ == pytest.approx(np.mean(losses), rel=1e-4)


def test_fold_of_knows_its_rows_only(fitted, two_classes):
    X, y = two_classes
    fold = fitted.fold_of(X, y)
    assert np.bincount(fold).tolist() == [54, 53, 53]
    assert np.array_equal(fitted.fold_of(X[::-1], y[::-1]), fold[::-1])
    with pytest.raises(ValueError, match="not seen"):
        fitted.fold_of(X + 1, y)


def test_never_worse_than_a_grid_on_the_same_folds(two_classes):
    X, y = two_classes
    model = BilevelSVC(folds=3, random_state=0).fit(X, y)
    fold = model.fold_of(X, y)
    splits = [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(3)]

    def score(machine, X, y):
        return -np.mean(np.maximum(0, 1 - (2.0 * y - 1.0) * machine.decision_function(X)))

    grid = GridSearchCV(
        SVC(kernel="linear"), {"C": 10.0 ** np.arange(-3, 4)}, scoring=score, cv=splits
    ).fit(X, y)
    assert model.validation_loss_ <= -grid.best_score_ + 1e-6


def test_refit_is_the_machine_with_the_selected_parameters(two_classes):
    X, y = two_classes
    model = BilevelSVC(folds=3, feature_bounds=False, random_state=0).fit(X, y)
    machine = SVC(kernel="linear", C=model.best_params_["C"], tol=1e-8).fit(X, y)
    assert model.coef_[0] == pytest.approx(machine.coef_[0], abs=1e-4)
    assert model.intercept_ == pytest.approx(machine.intercept_, abs=1e-4)


def test_same_answer_whatever_the_order_threads_or_units_of_weight(two_classes, fitted):
    X, y = two_classes
    order = np.random.default_rng(0).permutation(len(y))
    shuffled = clone(fitted).fit(X[order], y[order])
    assert shuffled.coef_ == pytest.approx(fitted.coef_, rel=1e-9)
    threads = clone(fitted).set_params(n_jobs=2).fit(X, y)
    assert threads.validation_loss_ == pytest.approx(fitted.validation_loss_, rel=1e-3)
    weights = np.where(np.arange(len(y)) < 5, 2.0, 1.0)
    weights[-3:] = 0.0
    weighted = clone(fitted).fit(X, y, sample_weight=weights)
    counts = weights.astype(int)
    repeated = clone(fitted).fit(np.repeat(X, counts, axis=0), np.repeat(y, counts))
    assert repeated.coef_ == pytest.approx(weighted.coef_, rel=1e-9)


def test_multi_class_is_one_versus_rest():
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = BilevelSVC(folds=3, random_state=0).fit(X, names)
    assert model.coef_.shape == (3, 4)
    assert model.decision_function(X).shape == (150, 3)
    assert set(model.predict(X)) == set(names)
    assert model.score(X, names) > 0.9
    assert len(model.result_) == 3
    assert model.best_params_["feature_bounds"].shape == (3, 4)
    scores = model.decision_function(X)
    assert np.array_equal(model.predict(X), model.classes_[np.argmax(scores, axis=1)])


def test_rbf_kernel_solves_what_a_line_cannot():
    X, y = make_moons(240, noise=0.15, random_state=0)
    linear = BilevelSVC(folds=3, random_state=0).fit(X[:160], y[:160])
    kernel = BilevelSVC(folds=3, kernel="rbf", n_components=30, random_state=0)
    kernel.fit(X[:160], y[:160])
    assert kernel.score(X[160:], y[160:]) > max(0.95, linear.score(X[160:], y[160:]))
    assert set(kernel.best_params_) == {"C", "gamma"}
    assert not hasattr(kernel, "coef_")


def with_noise_features(seed):
    X, y = irrelevant_features(noise=40, seed=seed)
    X = StandardScaler().fit(X[:200]).transform(X)
    return X[:200], y[:200], X[200:], y[200:]


def test_irrelevant_features_are_switched_off():
    X, y, _, _ = with_noise_features(0)
    model = BilevelSVC(random_state=0).fit(X, y)
    plain = BilevelSVC(feature_bounds=False, random_state=0).fit(X, y)
    off = model.feature_importances_ < 1e-3
    assert off[10:].sum() >= 5
    assert not np.any(plain.feature_importances_[10:] < 1e-3)
    assert model.feature_importances_[:10].sum() > plain.feature_importances_[:10].sum()


@pytest.mark.slow
def test_bounds_help_where_most_features_are_irrelevant():
    gains, shares = [], []
    for seed in range(6):
        X, y, X_test, y_test = with_noise_features(seed)
        bounded, plain = (
            BilevelSVC(feature_bounds=bounds, random_state=0).fit(X, y) for bounds in (True, False)
        )
        gains.append(bounded.score(X_test, y_test) - plain.score(X_test, y_test))
        shares.append([m.feature_importances_[:10].sum() for m in (bounded, plain)])
    assert np.mean(gains) > 0.005
    bounded_share, plain_share = np.mean(shares, axis=0)
    assert bounded_share > plain_share + 0.05


def test_regression():
    X, y = make_regression(150, 8, n_informative=3, noise=5.0, random_state=0)
    y = y / np.std(y)
    model = BilevelSVR(folds=3, random_state=0, epsilon=0.05).fit(X, y)
    assert model.score(X, y) > 0.95
    assert model.coef_.shape == (8,)
    assert model.result_.certificate.lower_ok(1e-6)
    plain = BilevelSVR(folds=3, feature_bounds=False, random_state=0, epsilon=0.05).fit(X, y)
    machine = SVR(kernel="linear", C=plain.best_params_["C"], epsilon=0.05, tol=1e-8).fit(X, y)
    assert plain.coef_ == pytest.approx(machine.coef_[0], abs=1e-4)


def test_pandas_pipeline_and_cross_validation(two_classes):
    X, y = two_classes
    frame = pd.DataFrame(X, columns=[f"feature {i}" for i in range(8)])
    pipeline = make_pipeline(StandardScaler(), BilevelSVC(folds=2, random_state=0))
    search = GridSearchCV(pipeline, {"bilevelsvc__feature_bounds": [True, False]}, cv=2)
    search.fit(frame, pd.Series(y).map({0: "no", 1: "yes"}))
    assert set(search.predict(frame)) == {"no", "yes"}
    model = BilevelSVC(folds=2, random_state=0).fit(frame, y)
    assert list(model.feature_names_in_) == list(frame.columns)


# what scikit-learn users expect of bad input


def test_one_class_only():
    with pytest.raises(ValueError, match="one class"):
        BilevelSVC().fit(np.random.default_rng(0).normal(size=(20, 2)), np.ones(20))


def test_fewer_samples_than_folds():
    with pytest.raises(ValueError, match=r"folds=5 cannot be greater.*n_samples=4"):
        BilevelSVC().fit([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1])


def test_a_fold_without_a_class_warns_as_stratified_k_fold_does():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 2)), np.array([1] * 2 + [0] * 28)
    with pytest.warns(UserWarning, match="least populated class"):
        list(StratifiedKFold(5).split(X, y))
    with pytest.warns(UserWarning, match="least populated class has 2 distinct samples"):
        model = BilevelSVC(random_state=0).fit(X, y)
    assert model.result_.certificate.lower_ok(1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf(bad):
    X = np.random.default_rng(0).normal(size=(20, 2))
    X[3, 1] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        BilevelSVC().fit(X, np.arange(20) % 2)


def test_sparse_input_is_refused_clearly():
    X = scipy.sparse.random(20, 3, 0.5, format="csr", random_state=0)
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        BilevelSVC().fit(X, np.arange(20) % 2)


def test_constant_and_duplicate_columns(two_classes):
    X, y = two_classes
    padded = np.column_stack([X, np.full(len(y), 3.0), X[:, 0]])
    model = BilevelSVC(folds=3, random_state=0).fit(padded, y)
    assert model.coef_[0, 8] == pytest.approx(0.0, abs=1e-8)
    plain = SVC(kernel="linear").fit(padded, y)
    assert model.score(padded, y) >= plain.score(padded, y) - 0.03


def test_separable_data():
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(size=(20, 2)) + 5, rng.normal(size=(20, 2)) - 5])
    y = np.repeat(["a", "b"], 20)
    model = BilevelSVC(random_state=0).fit(X, y)
    assert model.score(X, y) == 1.0
    assert model.validation_loss_ < 0.05
    assert np.all(np.isfinite(model.coef_))


def test_duplicated_rows_with_opposite_labels():
    X = np.repeat(np.random.default_rng(0).normal(size=(15, 2)), 2, axis=0)
    model = BilevelSVC(random_state=0).fit(X, np.tile([0, 1], 15))
    assert model.validation_loss_ >= 0.99  # nothing to learn
    assert np.all(np.isfinite(model.decision_function(X)))


def test_copies_of_a_sample_stay_in_one_fold(two_classes):
    X, y = two_classes
    once = BilevelSVC(folds=3, random_state=0).fit(X, y)
    thrice = BilevelSVC(folds=3, random_state=0).fit(np.tile(X, (3, 1)), np.tile(y, 3))
    # were copies split between training and validation, the loss would fall
    assert thrice.validation_loss_ > 0.9 * once.validation_loss_


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"folds": 1}, "folds must be an integer of at least 2"),
        ({"folds": 2.5}, "folds must be an integer"),
        ({"kernel": "poly"}, "kernel must be 'linear' or 'rbf'"),
        ({"n_jobs": 0}, "n_jobs must not be 0"),
        ({"kernel": "rbf", "n_components": 0}, "n_components must be a positive integer"),
    ],
)
def test_bad_parameters(two_classes, parameters, message):
    with pytest.raises(ValueError, match=message):
        BilevelSVC(**parameters).fit(*two_classes)


def test_bad_weights_and_epsilon(two_classes):
    X, y = two_classes
    with pytest.raises(ValueError, match="must not be negative"):
        BilevelSVC().fit(X, y, sample_weight=-np.ones(len(y)))
    with pytest.raises(ValueError, match="zero"):
        BilevelSVC().fit(X, y, sample_weight=np.zeros(len(y)))
    with pytest.raises(ValueError, match="epsilon"):
        BilevelSVR(epsilon=-1.0).fit(X, y)


def test_large_offsets_do_not_matter(two_classes):
    X, y = two_classes
    near = BilevelSVC(folds=3, feature_bounds=False, random_state=0).fit(X, y)
    far = BilevelSVC(folds=3, feature_bounds=False, random_state=0).fit(X + 1e4, y)
    assert far.validation_loss_ == pytest.approx(near.validation_loss_, rel=1e-4)


def test_status_is_honest(fitted):
    certificate = fitted.result_.certificate
    stationary = fitted.result_.status is blocc.Status.STATIONARY
    assert stationary == (certificate.stationarity <= 1e-6)


def test_probabilities_are_refused_with_a_way_out_that_works(fitted, two_classes):
    assert not hasattr(fitted, "predict_proba")
    with pytest.raises(AttributeError, match="CalibratedClassifierCV"):
        fitted.predict_proba(two_classes[0])
    calibrated = CalibratedClassifierCV(BilevelSVC(folds=2, random_state=0), cv=2).fit(*two_classes)
    assert calibrated.predict_proba(two_classes[0]).sum(axis=1) == pytest.approx(1.0)
