"""The commands ``blocc transport ...``: networks in, tables and a summary out."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from blocc.applications import transport
from blocc.console import Bar, Json, Out, show_table
from blocc.errors import InvalidInputError

app = typer.Typer(help="Transit network capacity design.", no_args_is_help=True)


@app.command("design")
def design(
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
    """Design link capacities that maximise profit; write tables, summary, map, report and GeoJSON."""
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
    with Bar(f"designing {network.name}", quiet=as_json) as bar:
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
    for name, reason in json.loads(written["summary.json"].read_text())["not_written"].items():
        typer.echo(f"note: {name} not written: {reason}", err=True)
    checkpoint.unlink(missing_ok=True)
    if as_json:
        print(json.dumps(json.loads((out / "summary.json").read_text())))
    else:
        show_table(_design_rows(summary), f"design of {network.name}")
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
