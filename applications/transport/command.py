"""The commands ``blocc transport ...``: networks in, tables and a summary out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from blocc.applications import transport
from blocc.console import Bar, Json, Out, show_table
from blocc.errors import InvalidInputError
from blocc.files import write_atomically

app = typer.Typer(
    help="Transit network capacity design; road equilibria and expansion.", no_args_is_help=True
)

Roads = Annotated[
    str,
    typer.Argument(
        help="sioux_falls, harker_friesz_1, harker_friesz_2, or a directory of tables or TNTP files."
    ),
]
FirstThrough = Annotated[
    int | None,
    typer.Option(help="Nodes with smaller numbers carry no through traffic (tables only)."),
]
TollFactor = Annotated[float, typer.Option(help="Time that a unit of toll is worth.")]
DistanceFactor = Annotated[float, typer.Option(help="Time that a unit of length is worth.")]


@app.command("design")
def design(
    instance: Annotated[
        str, typer.Argument(help="three_node, nine_node, seville, or a directory of tables.")
    ],
    out: Out,
    starts: Annotated[
        int | None,
        typer.Option(help="Perturbed restarts of the search.", show_default="by network size"),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Restarts at a time; -1: all processors.", show_default="1")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Largest total capacity cost.")] = None,
    minimum: Annotated[
        float | None, typer.Option(help="Least capacity of links without a limit in links.csv.")
    ] = None,
    maximum: Annotated[
        float | None, typer.Option(help="Largest capacity of links without a limit in links.csv.")
    ] = None,
    module: Annotated[
        float | None, typer.Option(help="Capacities in whole modules of this size.")
    ] = None,
    lower: Annotated[
        str, typer.Option(help="Passengers' solver: paths (fast) or maxmin (the paper's).")
    ] = "paths",
    tol: Annotated[float, typer.Option(help="Relative tolerance of the certificate.")] = 1e-6,
    seed: Annotated[int, typer.Option(help="Of the search's random numbers.")] = 0,
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
            starts=starts,
            n_jobs=jobs,
            budget=budget,
            minimum=minimum,
            maximum=maximum,
            module=module,
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


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInputError(
            f"{option}: {text!r} is not a list of numbers; write for example 0,0.1,0.2"
        ) from error


@app.command("scenarios")
def scenarios(
    instance: Annotated[
        str, typer.Argument(help="three_node, nine_node, seville, or a directory of tables.")
    ],
    out: Out,
    demand_growth: Annotated[
        str, typer.Option(help="Relative changes of all trips, with commas between.")
    ] = "0",
    cost: Annotated[str, typer.Option(help="Factors on all capacity costs.")] = "1",
    budget: Annotated[
        str | None, typer.Option(help="Largest total capacity costs.", show_default="none")
    ] = None,
    subsidy: Annotated[
        str, typer.Option(help="Money a trip served: trades profit for passengers.")
    ] = "0",
    starts: Annotated[
        int | None,
        typer.Option(help="Perturbed restarts of each search.", show_default="by network size"),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Scenarios at a time; -1: all processors.", show_default="1")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the search's random numbers.")] = 0,
    as_json: Json = False,
) -> None:
    """Design for every combination of assumptions; write scenarios.csv and pareto.png."""
    network = transport.load(instance)
    with Bar(f"scenarios of {network.name}", quiet=as_json):
        table = transport.scenarios(
            network,
            demand_growth=_numbers(demand_growth, "--demand-growth"),
            cost=_numbers(cost, "--cost"),
            budget=[None] if budget is None else _numbers(budget, "--budget"),
            subsidy=_numbers(subsidy, "--subsidy"),
            n_jobs=jobs,
            starts=starts,
            seed=seed,
        )
    written = [write_atomically(out / "scenarios.csv", table.to_csv(index=False).encode())]
    failed = int((table["error"] != "").sum())
    if (table["status"] != "failed").any():
        written.append(transport.plot_pareto(table, out / "pareto.png"))
    if as_json:
        print(table.to_json(orient="records"))
    else:
        shown = ["demand_growth", "cost", "budget", "subsidy", "status"]
        shown += [name for name in ("profit", "trips_served") if name in table]
        print(table[shown].to_string(index=False))
        print("written: " + "  ".join(str(path) for path in written))
    if failed:
        typer.echo(f"blocc: {failed} of {len(table)} scenarios not certified; see error", err=True)
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


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="SiouxFalls, Anaheim, Barcelona or ChicagoSketch.")],
    out: Out,
    base_url: Annotated[
        str | None, typer.Option(help="A mirror of the repository at the pinned commit.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch a TNTP road network (academic use only) and check it against pinned checksums."""
    from blocc.applications.transport import fetch as fetching

    with Bar(f"fetching {name}", quiet=as_json):
        files = fetching.fetch(name, out, base_url=base_url or fetching.BASE_URL)
    typer.echo(f"note: {fetching.LICENCE}", err=True)
    rows = {part: str(path) for part, path in files.items()}
    if as_json:
        print(json.dumps({"name": name, "files": rows, "licence": fetching.LICENCE}))
    else:
        show_table(rows, name)


@app.command("equilibrium")
def equilibrium(
    roads: Roads,
    out: Out,
    tol: Annotated[float, typer.Option(help="Relative duality gap to reach.")] = 1e-8,
    max_iterations: Annotated[int, typer.Option(help="Sweeps over all pairs at most.")] = 2000,
    first_through_node: FirstThrough = None,
    toll_factor: TollFactor = 0.0,
    distance_factor: DistanceFactor = 0.0,
    as_json: Json = False,
) -> None:
    """User equilibrium of a road network; write links.csv, pairs.csv and summary.json."""
    network = transport.load_roads(
        roads,
        first_through_node=first_through_node,
        toll_factor=toll_factor,
        distance_factor=distance_factor,
    )
    with Bar(f"equilibrium of {network.name}", quiet=as_json):
        answer = transport.equilibrium(
            network, tol=tol, max_iterations=max_iterations, on_failure="return"
        )
    written = answer.write(out)
    _tell(answer.summary(), f"equilibrium of {network.name}", written, as_json)
    if answer.gap > tol:
        typer.echo(f"blocc: the gap is {answer.gap:.1e}, not {tol:.1e}; raise --tol", err=True)
        raise typer.Exit(1)


@app.command("expand")
def expand(
    roads: Roads,
    out: Out,
    exponent: Annotated[
        float, typer.Option(help="q in the cost of expansion, expansion_cost z^q.")
    ] = 2.0,
    start: Annotated[
        float | None, typer.Option(help="Added capacity to start from; default the system optimum.")
    ] = None,
    tol: Annotated[float, typer.Option(help="Relative tolerance of the certificate.")] = 1e-6,
    max_iterations: Annotated[int, typer.Option(help="Outer iterations at most.")] = 2000,
    first_through_node: FirstThrough = None,
    toll_factor: TollFactor = 0.0,
    distance_factor: DistanceFactor = 0.0,
    as_json: Json = False,
) -> None:
    """Expand roads at least total cost, travellers at equilibrium; write expansion.csv and summary.json."""
    network = transport.load_roads(
        roads,
        first_through_node=first_through_node,
        toll_factor=toll_factor,
        distance_factor=distance_factor,
    )
    with Bar(f"expanding {network.name}", quiet=as_json) as bar:
        plan = transport.expand(
            network,
            exponent=exponent,
            start=start,
            tol=tol,
            max_iterations=max_iterations,
            callback=bar.update,
            on_failure="return",
        )
    written = plan.write(out)
    _tell(plan.summary(), f"expansion of {network.name}", written, as_json)
    if not plan.result.success:
        typer.echo(f"blocc: {plan.result.message}", err=True)
        raise typer.Exit(1)


def _tell(summary: dict[str, Any], title: str, written: dict[str, Path], as_json: bool) -> None:
    if as_json:
        print(json.dumps(json.loads(written["summary.json"].read_text())))
        return
    show_table({k: v for k, v in summary.items() if not isinstance(v, (dict, list))}, title)
    print("written: " + "  ".join(str(path) for path in written.values()))
