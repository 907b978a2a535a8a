"""The command line: ``blocc info``, ``blocc transport design``, ``blocc svm tune``, ``blocc reproduce svm``.

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
    import rich.console
    import rich.progress
    import rich.table
    import typer
except (
    ImportError
):  # the console script exists without the extra: say what is missing, not a traceback
    print(
        "blocc: the command line needs typer and rich:  pip install 'blocc[cli]'", file=sys.stderr
    )
    raise SystemExit(2) from None

app = typer.Typer(
    help="Bilevel optimisation with coupled constraints: every answer comes with its certificate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
transport_app = typer.Typer(help="Transit network capacity design.", no_args_is_help=True)
app.add_typer(transport_app, name="transport")
svm_app = typer.Typer(help="Support vector machines that tune themselves.", no_args_is_help=True)
app.add_typer(svm_app, name="svm")
reproduce_app = typer.Typer(
    help="The published studies again, with every method's true values.", no_args_is_help=True
)
app.add_typer(reproduce_app, name="reproduce")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Out = Annotated[Path, typer.Option("--out", help="Directory for the results; created if missing.")]

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


def _table(rows: dict[str, Any], title: str) -> None:
    table = rich.table.Table(title=title, show_header=False, title_justify="left")
    for key, value in rows.items():
        table.add_row(key, str(value))
    rich.console.Console().print(table)


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
    _table({**rows, **found}, "blocc")


@transport_app.command("design")
def transport_design(
    instance: Annotated[
        str, typer.Argument(help="three_node, nine_node, seville, or a directory of tables.")
    ],
    out: Out,
    lower: Annotated[
        str, typer.Option(help="Passengers' solver: paths (fast) or maxmin (the paper's).")
    ] = "paths",
    tol: Annotated[float, typer.Option(help="Relative tolerance of the certificate.")] = 1e-6,
    seed: Annotated[int, typer.Option(help="Random seed, recorded in summary.json.")] = 0,
    max_iterations: Annotated[int, typer.Option(help="Outer iterations at most.")] = 2000,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the checkpoint in --out.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Design link capacities that maximise profit; write design.csv, shares.csv, summary.json and a map."""
    transport = importlib.import_module("blocc.applications.transport")
    network = transport.load(instance)
    try:
        out.mkdir(parents=True, exist_ok=True)
        checkpoint = out / "checkpoint.npz"
        checkpoint.touch()
    except OSError as error:
        raise InvalidInputError(f"--out {out}: cannot be written ({error.strerror})") from error
    if not resume or checkpoint.stat().st_size == 0:
        checkpoint.unlink()
        if resume:
            raise InvalidInputError(
                f"--resume: there is no checkpoint in {out}; leave --resume out"
            )
    for note in network.notes:
        typer.echo(f"note: {note}", err=True)
    with _Bar(f"designing {network.name}", quiet=as_json) as bar:
        plan = transport.design(
            network,
            lower=lower,
            tol=tol,
            seed=seed,
            max_iterations=max_iterations,
            callback=bar.update,
            on_failure="return",
            checkpoint=checkpoint,
            resume=checkpoint if resume else None,
        )
    summary = plan.summary()
    written = plan.write(out)
    checkpoint.unlink(missing_ok=True)
    if as_json:
        print(json.dumps(json.loads((out / "summary.json").read_text())))
    else:
        _table(_design_rows(summary), f"design of {network.name}")
        print(plan.result.certificate)
        print("written: " + "  ".join(str(path) for path in written.values()))
    if not plan.result.success:
        typer.echo(f"blocc: {plan.result.message}", err=True)
        raise typer.Exit(1)


def _design_rows(summary: dict[str, Any]) -> dict[str, str]:
    return {
        "status": summary["status"],
        "profit at the passengers' exact response": f"{summary['profit']:.6g}",
        "revenue": f"{summary['revenue']:.6g}",
        "capacity cost": f"{summary['cost']:.6g}",
        "proven upper bound on profit": f"{summary['bound']:.6g}",
        "trips served": f"{summary['trips_served']:.6g} of {summary['trips']:.6g} ({summary['share_served']:.1%})",
        "links built": f"{summary['links_built']} of {summary['links']}, {summary['links_at_capacity']} full",
        "seconds": f"{summary['seconds']:.2f}",
    }


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
    """Select C and feature bounds by cross-validation, refit, and write parameters, folds and a plot."""
    command = importlib.import_module("blocc.applications.svm.command")
    with _Bar(f"tuning {csv.name}", quiet=as_json):
        summary = command.tune(
            csv, target, out, folds=folds, feature_bounds=feature_bounds, kernel=kernel, seed=seed
        )
    _report(summary, f"tuning of {csv.name}", as_json)


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
    with _Bar("the SVM study", quiet=as_json):
        summary = command.reproduce(out, splits=splits)
    _report(summary, "the SVM study", as_json)


def _report(summary: dict[str, Any], title: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, default=str))
    else:
        _table({k: v for k, v in summary.items() if not isinstance(v, (dict, list))}, title)
    if summary.get("success") is False:
        typer.echo("blocc: no certified answer; what was found is written", err=True)
        raise typer.Exit(1)


class _Bar:
    """Progress on standard error where it is a terminal: iteration, gamma, best value so far."""

    def __init__(self, text: str, quiet: bool):
        console = rich.console.Console(stderr=True)
        self.progress = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self.text = text

    def __enter__(self) -> _Bar:
        self.progress.start()
        self.task = self.progress.add_task(self.text, total=None)
        return self

    def update(self, record: dict[str, Any]) -> None:
        """Show a record of the solve."""
        self.progress.update(
            self.task,
            description=f"{self.text}: iteration {record['iteration']}, gamma {record['gamma']:.3g}, "
            f"upper value {record['response']:.6g}",
        )

    def __exit__(self, *error: object) -> None:
        self.progress.stop()


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
            print(f"blocc: {error.format_message()}", file=sys.stderr)
            raise SystemExit(2) from None
        raise
    raise SystemExit(code if isinstance(code, int) else 0)
