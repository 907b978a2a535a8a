"""Optional packages are asked for when they are needed, with the pip line."""

import subprocess
import sys


def run_without(package, code):
    program = f"import sys; sys.modules[{package!r}] = None\n" + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_without_scikit_learn_the_slack_bound_problem_still_works():
    found = run_without(
        "sklearn",
        "from blocc.applications.svm import SlackBoundProblem\n"
        "from blocc.applications.svm.data import study_splits\n"
        "s = next(study_splits('fourclass'))\n"
        "print(SlackBoundProblem(s.X_train, s.y_train, s.X_val, s.y_val).solve().status.name)\n"
        "from blocc.applications.svm import BilevelSVC\n",
    )
    assert found.stdout.strip() == "OPTIMAL"
    assert "pip install 'blocc[svm]'" in found.stderr


def test_without_daqp_the_error_has_the_pip_line():
    found = run_without(
        "daqp",
        "from blocc.applications.svm import SlackBoundProblem\n"
        "SlackBoundProblem([[0.0], [1.0]], [0, 1], [[0.0], [1.0]], [0, 1]).solve()\n",
    )
    assert "pip install 'blocc[svm]'" in found.stderr
    assert found.returncode == 1


def test_import_is_lazy():
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, blocc.applications.svm; "
            "print([m for m in ('sklearn', 'daqp', 'pandas', 'matplotlib') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == "[]"
