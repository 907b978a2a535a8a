"""The command line: ``blocc info``, ``blocc transport design``, ``blocc svm tune``, ``blocc reproduce``.

Exit codes: 0 done; 1 no certified answer (what was found is written all the same); 2 wrong input, in one clear line.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from blocc import __version__, arrays
from blocc.errors import BloccError, InvalidInputError, MissingDependencyError, SolveError

try:
    import typer
    import typer.core

    from blocc.console import Bar, Json, Out, report, show_table
except (
    ImportError
):  # the console script exists without the extra: say what is missing, not a traceback
    print(
        "blocc: the command line needs typer and rich:  pip install 'blocc[cli]'", file=sys.stderr
    )
    raise SystemExit(2) from None


def _commands_of(module: str, extra: str) -> type[typer.core.TyperGroup]:
    """Group with the commands of a module's ``app``, imported on first use: ``blocc info`` needs none of it."""

    class Commands(typer.core.TyperGroup):
        def _group(self) -> typer.core.TyperGroup:
            try:
                return typer.main.get_group(importlib.import_module(module).app)
            except ModuleNotFoundError as error:
                raise MissingDependencyError(str(error.name), extra, "this command") from error

        def list_commands(self, ctx: Any) -> list[str]:
            return list(self._group().commands)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            return self._group().commands.get(cmd_name)

    return Commands


app = typer.Typer(
    help="Bilevel optimisation with coupled constraints: every answer comes with its certificate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(
    typer.Typer(
        help="Transit network capacity design.",
        no_args_is_help=True,
        cls=_commands_of("blocc.applications.transport.command", extra="transport"),
    ),
    name="transport",
)
svm_app = typer.Typer(help="Support vector machines that tune themselves.", no_args_is_help=True)
app.add_typer(svm_app, name="svm")
reproduce_app = typer.Typer(
    help="The published studies again, with every method's true values.", no_args_is_help=True
)
app.add_typer(reproduce_app, name="reproduce")

Quick = Annotated[
    bool, typer.Option("--quick", help="The smallest size of each: shows that it runs, no more.")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"blocc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Version, and exit."),
    ] = False,
) -> None:
    pass


PACKAGES = (
    "numpy",
    "scipy",
    "array-api-compat",
    "cvxpy",
    "clarabel",
    "numba",
    "networkx",
    "pandas",
    "matplotlib",
    "scikit-learn",
    "autograd",
    "cupy-cuda12x",
    "cupy-cuda13x",
)


@app.command()
def info(as_json: Json = False) -> None:
    """Versions, array backends and devices."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    devices = arrays.devices()
    facts = {
        "blocc": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()} {platform.system()}",
        "backends": ["numpy", *(["cupy"] if devices else [])],
        "devices": devices,
        "packages": found,
    }
    if as_json:
        print(json.dumps(facts))
        return
    rows = {
        **{k: facts[k] for k in ("blocc", "python", "machine")},
        "backends": ", ".join(facts["backends"]),
    }
    rows["CUDA devices"] = (
        ", ".join(devices) or "none (GPU code falls back to NumPy with backend='auto')"
    )
    show_table({**rows, **found}, "blocc")


@svm_app.command("tune")
def svm_tune(
    csv: Annotated[
        Path, typer.Argument(help="Table with a header, one row a sample, numeric features.")
    ],
    target: Annotated[str, typer.Option(help="Column with the class.")],
    out: Out,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation.")] = 5,
    feature_bounds: Annotated[bool, typer.Option(help="Also select bounds on the weights.")] = True,
    kernel: Annotated[str, typer.Option(help="linear or rbf.")] = "linear",
    seed: Annotated[int, typer.Option(help="Random seed of the folds.")] = 0,
    as_json: Json = False,
) -> None:
    """Select C and feature bounds by cross-validation, refit, and write parameters, folds and a plot.

    Features are brought to mean 0 and deviation 1 first. Exit code 0 says that every fold's machine is solved to
    optimality at what was selected; whether the selection itself is certified stationary is in the table.
    """
    command = importlib.import_module("blocc.applications.svm.command")
    with Bar(f"tuning {csv.name}", quiet=as_json):
        summary = command.tune(
            csv, target, out, folds=folds, feature_bounds=feature_bounds, kernel=kernel, seed=seed
        )
    report(summary, f"tuning of {csv.name}", as_json)


@reproduce_app.command("svm")
def reproduce_svm(
    out: Out,
    splits: Annotated[
        int, typer.Option(help="The first this many of the study's ten splits.")
    ] = 10,
    as_json: Json = False,
) -> None:
    """Solve the study's SVM problem on its splits, certified; in a source checkout, by the other methods as well."""
    command = importlib.import_module("blocc.applications.svm.command")
    with Bar("the SVM study", quiet=as_json):
        summary = command.reproduce(out, splits=splits)
    report(summary, "the SVM study", as_json)


@reproduce_app.command("toy")
def reproduce_toy(out: Out, quick: Quick = False, as_json: Json = False) -> None:
    """The paper's toy problems from many starts, and the convergence figures."""
    _reproduce("toy", out, quick, as_json)


@reproduce_app.command("transport")
def reproduce_transport(out: Out, quick: Quick = False, as_json: Json = False) -> None:
    """Transit designs beside the published method, large networks, user equilibria."""
    _reproduce("transport", out, quick, as_json)


@reproduce_app.command("all")
def reproduce_all(out: Out, quick: Quick = False, as_json: Json = False) -> None:
    """Every table and figure that the README and the docs cite; takes hours."""
    _reproduce("all", out, quick, as_json)


def _reproduce(group: str, out: Path, quick: bool, as_json: bool) -> None:
    from blocc.reproduce import reproduce

    manifest = reproduce(group, out, quick=quick, progress=lambda line: typer.echo(line, err=True))
    if as_json:
        print(json.dumps(manifest))
    else:
        rows = {k: f"{v['state']} {v['reason']}" for k, v in manifest["studies"].items()}
        show_table({**rows, "written": out / "manifest.json"}, f"reproduce {group}")
    if not manifest["success"]:
        typer.echo("blocc: a study failed; the rest is written", err=True)
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; every expected error becomes one line and an exit code."""
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        print("blocc: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except SolveError as error:
        print(f"blocc: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except (InvalidInputError, MissingDependencyError, BloccError) as error:
        print(f"blocc: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own usage errors
            message = error.format_message()
            if message:  # none where no arguments were given: the help has been printed
                print(f"blocc: {message}", file=sys.stderr)
            raise SystemExit(2) from None
        raise
    if code == 130:  # what typer makes of Ctrl-C, without a word
        print("blocc: interrupted", file=sys.stderr)
    raise SystemExit(code if isinstance(code, int) else 0)
