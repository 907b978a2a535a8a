"""Bad input to ``blocc.minimize``: each is mended where that is safe, and otherwise one clear error that names it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import blocc
from blocc.errors import (
    CorruptFileError,
    InvalidInputError,
    LowerInfeasibleError,
    LowerUnboundedError,
    SolveError,
    SolveInterrupted,
    UnsupportedModelError,
    UpperUnboundedError,
)
from tests.conformance import problems

f = blocc.Function(
    lambda x, y, d: ((x - 1) ** 2).sum() + ((y - 2) ** 2).sum(),
    lambda x, y, d: (2 * (x - 1), 2 * (y - 2)),
)
g = blocc.Function(
    lambda x, y, d: ((y - 2 * x) ** 2).sum(),
    lambda x, y, d: (-4 * (y - 2 * x), 2 * (y - 2 * x)),
)
c = blocc.Function(lambda x, y, d: y - x, lambda x, y, w, d: (-w, w))
SETS = {"x_set": blocc.Box(0, 3), "y_set": blocc.Box(0, 3)}


def run(f=f, g=g, c=c, x0=(0.5,), y0=(0.0,), **options):
    return blocc.minimize(f, g, c, x0, y0, **{**SETS, **options})


def changed(function: blocc.Function, change) -> blocc.Function:
    """The same function with its gradient changed."""
    return blocc.Function(function.value, lambda *arguments: change(*function.gradient(*arguments)))


def test_the_plain_problem_is_solved():
    """What every test below changes one thing of: ``y = x`` for ``x >= 0``, optimum at 1.5."""
    result = run()
    assert result.x[0] == pytest.approx(1.5, abs=1e-6)
    assert result.y[0] == pytest.approx(1.5, abs=1e-6)
    assert result.objective == pytest.approx(0.5, abs=1e-6)
    assert result.status is blocc.Status.STATIONARY
    assert result.certificate.ok(1e-6)


# ---- mended -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("x0", "y0"), [([100.0], [0.0]), ([-5.0], [-7.0]), ([0.5], [50.0])])
def test_a_start_outside_its_set_is_projected(x0, y0):
    result = run(x0=x0, y0=y0)
    assert result.x[0] == pytest.approx(1.5, abs=1e-6)


@pytest.mark.parametrize(
    ("x0", "y0"),
    [
        ([0], [0]),
        (np.array([1]), [0.0]),
        ((0.5,), np.array([0.0])),
        (np.array([0.5], dtype=np.float64), np.array([0], dtype=np.int32)),
        ([np.float32(0.5)], [np.int64(0)]),
    ],
)
def test_lists_tuples_and_integers_become_floating_arrays(x0, y0):
    result = run(x0=x0, y0=y0)
    assert result.x.dtype == result.y.dtype == np.float64
    assert result.x[0] == pytest.approx(1.5, abs=1e-6)


def test_the_starts_are_not_changed():
    x0, y0 = np.array([5.0]), np.array([-5.0])
    run(x0=x0, y0=y0)
    assert (x0[0], y0[0]) == (5.0, -5.0)


def limited(offset: float) -> blocc.Function:
    """``x + y <= offset`` for y >= 0: feasible for ``x <= offset`` alone."""
    return blocc.Function(lambda x, y, d: x + y - offset, lambda x, y, w, d: (w, w))


def test_an_infeasible_lower_level_at_x0_is_restored():
    """At x0 = 3 no y >= 0 has x + y <= 1; the optimum is x = y = 1/2, on the boundary x + y = 1."""
    result = run(c=limited(1.0), x0=[3.0])
    assert result.certificate.ok(1e-6)
    assert result.certificate.violation <= 1e-6
    assert result.x[0] + result.y[0] <= 1 + 1e-6
    same = run(c=limited(1.0), x0=[0.2])
    assert result.objective == pytest.approx(same.objective, abs=1e-5)


def test_a_lower_level_that_no_x_makes_feasible_names_the_constraint():
    with pytest.raises(
        LowerInfeasibleError, match=r"constraint 'c' is violated by at least 1\b.*Check its sign"
    ):
        run(c=limited(-1.0), x0=[3.0])


def test_an_equality_that_no_x_can_meet_is_named():
    h = blocc.Function(lambda x, y, d: y - 9.0, lambda x, y, w, d: (0 * x, w))
    with pytest.raises(LowerInfeasibleError, match=r"constraint 'h' is violated by at least 6\b"):
        run(c=None, h=h)


# ---- refused ------------------------------------------------------------------------------------------------------


def test_an_unbounded_lower_level_says_so():
    falls = blocc.Function(lambda x, y, d: (x * y).sum() + y.sum(), lambda x, y, d: (y, x + 1))
    with pytest.raises(LowerUnboundedError, match="lower level: its objective falls without bound"):
        run(g=falls, c=None, y_set=None)


@pytest.mark.parametrize("name", ["f", "g"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, y, d: (x - y) * np.ones(2), r"must return a scalar, got shape \(2,\)"),
        (
            lambda x, y, d: np.zeros((1, 2)) @ (x + y),
            r"failed at the start, with x of shape \(1,\)",
        ),
        (lambda x, y, d: (x * np.nan).sum(), "is not finite at the starting point"),
        (lambda x, y, d: None, "must return a scalar, got"),
        (lambda x, y, d: "text", "must return a scalar, got"),
        (lambda x, y: (x - y).sum(), r"is called as \w\(x, y, data\)"),
    ],
    ids=["vector", "shapes", "nan", "none", "text", "two arguments"],
)
def test_an_objective_with_a_wrong_value_is_named(name, function, message):
    with pytest.raises(InvalidInputError, match=rf"^{name}\b.*{message}"):
        run(**{name: function})


@pytest.mark.parametrize("name", ["c", "h", "G"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, y, d: y[:0], "must return a non-empty array"),
        (lambda x, y, d: np.zeros((2, 3)) @ y, r"failed at the start, with x of shape \(1,\)"),
        (lambda x, y, d: y[5:6] - x[7], "failed at the start"),
        (lambda x, y, d: np.nan * y, "is not finite at the starting point"),
        (lambda x, y, d: None, "must return a non-empty array, got NoneType"),
    ],
    ids=["empty", "shapes", "index", "nan", "none"],
)
def test_a_constraint_with_a_wrong_value_is_named(name, function, message):
    with pytest.raises(InvalidInputError, match=rf"^{name}\b.*{message}"):
        run(**{name: function})


@pytest.mark.parametrize("name", ["f", "g"])
@pytest.mark.parametrize("value", [3.0, "f", np.zeros(1), [1]])
def test_what_is_not_callable_is_named(name, value):
    with pytest.raises(
        InvalidInputError, match=rf"{name} must be callable or a blocc\.Function, got"
    ):
        run(**{name: value})


@pytest.mark.parametrize("name", ["c", "h", "G"])
def test_a_constraint_that_is_not_callable_is_named(name):
    with pytest.raises(InvalidInputError, match=f"{name} must be callable"):
        run(**{name: 1.0})


@pytest.mark.parametrize("name", ["f", "g"])
def test_a_missing_objective_is_named(name):
    with pytest.raises(InvalidInputError, match=f"{name} must be callable"):
        run(**{name: None})


h = blocc.Function(lambda x, y, d: y - x, lambda x, y, w, d: (-w, w))
PARTS = {"f": f, "g": g, "c": c, "h": h, "G": c}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (-a, b), "in x is wrong: it has the wrong sign"),
        (lambda a, b: (a, -b), "in y is wrong: it has the wrong sign"),
        (lambda a, b: (a, 3 * b), "in y is wrong: it does not match"),
        (lambda a, b: (b[None], b), r"in x has shape \(1, 1\), but x has shape \(1,\)"),
    ],
    ids=["sign in x", "sign in y", "factor in y", "shape in x"],
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_wrong_gradient_is_named(name, change, message, dtype):
    x0, y0 = np.array([0.5], dtype=dtype), np.array([0.3], dtype=dtype)
    with pytest.raises(InvalidInputError, match=f"gradient of {name} {message}"):
        run(**{name: changed(PARTS[name], change)}, x0=x0, y0=y0)


@pytest.mark.parametrize("name", ["x0", "y0"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([math.nan], "NaN or infinite"),
        ([0.5, math.nan], "NaN or infinite"),
        ([math.inf], "NaN or infinite"),
        ([], "is empty"),
        (np.zeros((0, 3)), "is empty"),
        (None, "got None"),
        ("text", "expected numbers"),
        ([[1.0], [2.0, 3.0]], "expected numbers"),
    ],
    ids=str,
)
def test_a_bad_start_is_named(name, value, message):
    with pytest.raises(InvalidInputError, match=message) as caught:
        run(**{name: value})
    if "expected" not in message:
        assert name in str(caught.value) or "None" in message


@pytest.mark.parametrize(("label", "start"), [("x_set", "x0"), ("y_set", "y0")])
@pytest.mark.parametrize("wrong", [blocc.Box([0, 0], [1, 1]), blocc.Ball(1.0, [0, 0, 0])])
def test_a_set_of_another_shape_is_named(label, start, wrong):
    with pytest.raises(InvalidInputError, match=rf"{label} does not fit {start} of shape \(4,\)"):
        run(**{label: wrong}, x0=[0.1, 0.2, 0.3, 0.4], y0=[0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("label", ["x_set", "y_set"])
@pytest.mark.parametrize("wrong", [(0, 1), "box", 3, blocc.Box])
def test_what_is_no_set_is_named(label, wrong):
    with pytest.raises(InvalidInputError, match=rf"{label} must be a set such as blocc\.Box"):
        run(**{label: wrong})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("method", "newton", "method must be one of auto, "),
        ("method", None, "method must be one of"),
        ("method", "convex_concave", "needs a model with a convex-concave step"),
        ("backend", "gpu", "backend must be 'auto', 'numpy' or 'cupy', got 'gpu'"),
        ("tol", 0.0, "tol must be between 0 and 1, got 0"),
        ("tol", -1e-6, "tol must be between 0 and 1"),
        ("tol", 1.0, "tol must be between 0 and 1"),
        ("tol", math.nan, "tol must be between 0 and 1"),
        ("tol", "small", "tol must be"),
        ("gamma", 0.0, "gamma must be positive and finite"),
        ("gamma", -1.0, "gamma must be positive and finite"),
        ("gamma", math.inf, "gamma must be positive and finite"),
        ("gamma", math.nan, "gamma must be positive and finite"),
        ("gamma", "large", "gamma must be"),
        ("max_iterations", 0, "max_iterations must be at least 1, got 0"),
        ("max_iterations", -5, "max_iterations must be at least 1"),
        ("max_iterations", math.nan, "max_iterations must be"),
        ("max_iterations", "many", "max_iterations must be"),
        ("on_failure", "ignore", "on_failure must be 'raise' or 'return'"),
    ],
)
def test_a_wrong_option_is_named(option, value, message):
    with pytest.raises(InvalidInputError, match=message):
        run(**{option: value})


def test_lbfgsb_needs_a_box():
    with pytest.raises(
        InvalidInputError, match="needs x_set to be a Box, not Ball; use 'spectral'"
    ):
        run(method="lbfgsb", x_set=blocc.Ball(2.0))


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), RuntimeError("mine")])
def test_the_users_own_errors_come_through(error):
    def fails(x, y, d):
        raise error

    with pytest.raises(type(error), match="mine"):
        run(f=fails)


def test_a_function_that_turns_nan_later_is_an_error_and_not_an_answer():
    """f is NaN for y > 1, where the optimum would be: steps there are taken back, and nothing is called solved."""

    def value(x, y, d):
        return f.value(x, y, d) * (np.nan if np.any(y > 1) else 1.0)

    with pytest.raises((SolveError, blocc.LowerLevelError)):
        run(f=blocc.Function(value, f.gradient))


# ---- runs that end early ------------------------------------------------------------------------------------------


def test_a_failure_carries_the_partial_result():
    with pytest.raises(SolveError, match="The answer is in this exception's result") as caught:
        run(max_iterations=1, gamma=0.1, tol=1e-9, x_set=blocc.Ball(3.0), x0=[0.3])
    partial = caught.value.result
    assert partial.status is blocc.Status.ITERATION_LIMIT
    assert "raise max_iterations" in partial.message
    assert partial.certificate.lower_ok(1e-6)
    returned = run(
        max_iterations=1, gamma=0.1, tol=1e-9, x_set=blocc.Ball(3.0), x0=[0.3], on_failure="return"
    )
    assert returned.x.tobytes() == partial.x.tobytes()


def test_ctrl_c_carries_the_best_point():
    seen = []

    def stop(record):
        seen.append(record)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(SolveInterrupted) as caught:
        run(method="spectral", callback=stop)
    partial = caught.value.result
    assert partial.status is blocc.Status.INTERRUPTED
    assert partial.certificate.lower_ok(1e-6)
    assert partial.objective <= max(record["response"] for record in seen) + 1e-9


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, InvalidInputError, "no such file"),
        (b"", CorruptFileError, "damaged, or not written by blocc"),
        (b"PK\x03\x04 broken", CorruptFileError, "damaged, or not written by blocc"),
    ],
)
def test_resuming_from_a_bad_file(content, error, message, tmp_path):
    path = tmp_path / "checkpoint.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        run(resume=path)


def test_resuming_another_problem_is_refused(tmp_path):
    path = tmp_path / "checkpoint.npz"

    def stop(record):
        if path.exists():
            raise KeyboardInterrupt

    with pytest.raises(SolveInterrupted):
        problems.minimize(np, tol=1e-2, checkpoint=path, callback=stop)
    for options in (
        {"tol": 1e-3},
        {"tol": 1e-2, "gamma": 3.0},
        {"tol": 1e-2, "method": "spectral"},
    ):
        with pytest.raises(InvalidInputError, match="checkpoint of another solve"):
            problems.minimize(np, resume=path, **options)
    with pytest.raises(InvalidInputError, match=r"checkpoint of another solve \(shape differ\)"):
        run(resume=path, tol=1e-2, x0=[0.1, 0.2], y0=[0.0, 0.0])


def test_resuming_a_result_file_is_refused(tmp_path):
    path = run().save(tmp_path / "result.npz")
    with pytest.raises(CorruptFileError, match="not a blocc-checkpoint-2 file"):
        run(resume=path)


def test_verbose_prints_one_header_one_table_one_status_line(capsys):
    result = run(verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("blocc: FunctionalModel, method ")
    assert lines[1].split()[:3] == ["iteration", "method", "gamma"]
    assert len(lines) == 2 + len(result.records) + 1
    assert lines[-1].startswith("status: stationary")
    assert len({len(line) for line in lines[1:-1]}) == 1  # columns line up
    run()
    assert capsys.readouterr().out == ""


def test_the_same_answer_twice():
    first, second = run(), run()
    assert first.x.tobytes() == second.x.tobytes()
    assert first.y.tobytes() == second.y.tobytes()
    assert first.certificate == second.certificate


# ---- a certificate means what it says -----------------------------------------------------------------------------


@pytest.mark.parametrize("tol", [1e-3, 1e-4, 1e-6])
def test_a_certified_answer_is_no_worse_than_its_tolerance(tol):
    """The lower level's answer is known in pieces here, so the true optimum is found by a fine grid.

    At small gamma the penalty left is small as well, because gamma is; that must not pass for convergence.
    """
    d = {
        "b": np.array([1.5, 0.2]),
        "B": np.array([[1.0], [0.2]]),
        "q": np.array([2.0, 1.0]),
    }
    upper = blocc.Function(
        lambda x, y, d: 0.5 * ((x - 1) ** 2).sum() + 0.5 * ((y - d["b"]) ** 2).sum(),
        lambda x, y, d: (x - 1, y - d["b"]),
    )
    lower = blocc.Function(
        lambda x, y, d: (0.5 * d["q"] * y * y - (d["B"] @ x) * y).sum(),
        lambda x, y, d: (-(d["B"].T @ y), d["q"] * y - d["B"] @ x),
    )
    row, equal = np.array([[1.0, 1.0]]), np.array([[1.0, -0.5]])
    coupled = blocc.Function(
        lambda x, y, d: row @ y + 0.5 * x - 0.8, lambda x, y, w, d: (0.5 * w, row.T @ w)
    )
    equality = blocc.Function(
        lambda x, y, d: equal @ y + 0.2 * x - 0.1, lambda x, y, w, d: (0.2 * w, equal.T @ w)
    )
    result = blocc.minimize(
        upper,
        lower,
        coupled,
        [-0.5],
        [0.0, 0.0],
        h=equality,
        data=d,
        tol=tol,
        x_set=blocc.Ball(2.0),
        y_set=blocc.Box(-5, 5),
        on_failure="return",
    )

    def response(x: float) -> float:
        """y = (0.1 - 0.2 x + y2 / 2, y2), its one free entry minimised and cut off by c."""
        shift = 0.1 - 0.2 * x
        y2 = (0.7 * x - shift) / 1.5
        y2 = min(y2, (0.8 - 0.5 * x - shift) / 1.5)
        y = np.array([shift + y2 / 2, y2])
        return upper.value(np.array([x]), y, d)

    best = min(response(x) for x in np.linspace(-2, 2, 40_001))
    assert response(float(result.x[0])) == pytest.approx(result.objective, abs=1e-6)
    assert result.objective <= best + 10 * tol


def test_a_lower_level_that_is_seen_to_be_concave_is_refused():
    """At y = 0 minus y^2 has its maximum: KKT residuals vanish there, and would certify the wrong answer."""
    f = blocc.Function(lambda x, y, d: (x**2).sum() + (y**2).sum(), lambda x, y, d: (2 * x, 2 * y))
    g = blocc.Function(lambda x, y, d: -(y**2).sum(), lambda x, y, d: (0 * x, -2 * y))
    with pytest.raises(blocc.UnsupportedModelError, match="not convex"):
        blocc.minimize(f, g, None, [0.2], [0.0], x_set=blocc.Box(0, 3), y_set=blocc.Box(-3, 3))


@pytest.mark.filterwarnings("ignore:Output seems independent of input")
def test_a_derivative_that_autograd_loses_is_found_before_the_solve():
    pytest.importorskip("autograd")
    with pytest.raises(blocc.InvalidInputError, match=r"gradient of c.*namespace"):
        blocc.minimize(
            lambda x, y, d: ((x - 1) ** 2).sum() + (y**2).sum(),
            lambda x, y, d: (y**2).sum(),
            lambda x, y, d: np.array(
                [float(v) for v in [getattr(y[0] + x[0] - 1.5, "_value", y[0] + x[0] - 1.5)]]
            ),
            [0.2],
            [0.0],
        )


@pytest.mark.parametrize("method", ["lbfgsb", "spectral"])
@pytest.mark.parametrize(
    ("f", "y_set"),
    [
        (lambda x, y, d: -x.sum() + 0 * y.sum(), blocc.Box(0, 3)),
        (lambda x, y, d: y.sum(), None),
        (lambda x, y, d: -((x - 9) ** 2).sum() + 0 * y.sum(), blocc.Box(0, 3)),
    ],
    ids=["f falls in x", "f falls along the answer", "f falls ever faster"],
)
def test_an_upper_objective_without_a_minimum_is_refused(f, y_set, method):
    with pytest.raises(UpperUnboundedError, match="no minimum"):
        blocc.minimize(
            f,
            lambda x, y, d: ((y - x) ** 2).sum(),
            None,
            x0=[0.5, 0.5],
            y0=[0.0, 0.0],
            y_set=y_set,
            method=method,
        )


def test_an_objective_that_falls_along_bounded_variables_alone_is_solved_at_the_bound():
    far = 1e9
    result = blocc.minimize(
        lambda x, y, d: -x.sum() + 0 * y.sum(),
        lambda x, y, d: (y**2).sum(),
        None,
        x0=[0.5],
        y0=[0.0],
        x_set=blocc.Box(0, far),
    )
    assert result.success
    assert result.x[0] == far


@pytest.mark.parametrize(
    "h", [lambda x, y, d: y**3 - y - 0.1 * x, lambda x, y, d: y**2 - 1 + 0 * x]
)
def test_an_equality_that_is_not_affine_in_y_is_refused(h):
    with pytest.raises(UnsupportedModelError, match="h is not affine in y"):
        blocc.minimize(
            lambda x, y, d: (x**2).sum() + (y**2).sum(),
            lambda x, y, d: ((y + 1) ** 2).sum(),
            None,
            x0=[0.0],
            y0=[1.0],
            h=h,
            x_set=blocc.Box(-1, 1),
            y_set=blocc.Box(-3, 3),
        )


@pytest.mark.parametrize("name", ["c", "G"])
def test_a_constraint_with_the_wrong_sign_is_refused_as_not_convex(name):
    with pytest.raises(UnsupportedModelError, match=f"{name} is not convex in y"):
        blocc.minimize(
            lambda x, y, d: (x**2).sum() + (y**2).sum(),
            lambda x, y, d: ((y + 1) ** 2).sum(),
            **{"c": None, name: lambda x, y, d: 1 - y**2 + 0 * x},
            x0=[0.0],
            y0=[1.0],
        )


@pytest.mark.parametrize(
    ("data", "culprit"),
    [
        (np.array([1.0, np.nan]), "data has"),
        ({"trips": np.array([np.inf])}, r"data\['trips'\] has"),
        ([1.0, (2.0, float("nan"))], r"data\[1\]\[1\] has"),
    ],
)
def test_data_with_nan_are_named(data, culprit):
    def total(part):
        if isinstance(part, dict):
            part = part.values()
        return sum(total(p) for p in part) if hasattr(part, "__iter__") else part

    with pytest.raises(InvalidInputError, match=culprit):
        blocc.minimize(
            lambda x, y, d: ((x - total(d)) ** 2).sum() + 0 * y.sum(),
            lambda x, y, d: ((y - x) ** 2).sum(),
            None,
            x0=[0.0],
            y0=[0.0],
            data=data,
        )
