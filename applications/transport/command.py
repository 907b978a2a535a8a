"""The commands ``blocc transport ...``: networks in, tables and a summary out."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from blocc.applications import transport
from blocc.applications.transport.output import plain
from blocc.applications.transport.tables import number_of
from blocc.console import Bar, Json, Out, show_table
from blocc.errors import InvalidInputError
from blocc.files import write_atomically
from blocc.result import Result, Status

app = typer.Typer(
    help="Transit network capacity design; road equilibria and expansion.", no_args_is_help=True
)

Instance = Annotated[
    str,
    typer.Argument(
        help="three_node, nine_node, seville, or a directory with links.csv, demand.csv and nodes.csv."
    ),
]
Starts = Annotated[
    int | None,
    typer.Option(min=0, help="Perturbed restarts of a search.", show_default="by network size"),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the search's random numbers.")]
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
TollFactor = Annotated[
    float | None,
    typer.Option(
        help="Time that a unit of toll is worth.", show_default="0, or what TNTP files say"
    ),
]
DistanceFactor = Annotated[
    float | None,
    typer.Option(
        help="Time that a unit of length is worth.", show_default="0, or what TNTP files say"
    ),
]


def _check_jobs(jobs: int | None) -> None:
    if jobs == 0:
        raise InvalidInputError("--jobs must not be 0; write 1, or -1 for all processors")


def _trouble(result: Result, what: str) -> str | None:
    """What is wrong with an answer, for the last line."""
    if result.status is Status.INTERRUPTED:
        return f"interrupted; the best {what} so far is written"
    return None if result.success else result.message


def _finish(
    written: dict[str, Path],
    rows: dict[str, Any],
    title: str,
    trouble: str | None,
    *,
    as_json: bool,
    certificate: object = None,
) -> None:
    """Show what was found and written; exit with code 1 where something is wrong with it."""
    summary = json.loads(written["summary.json"].read_text())
    for name, reason in summary.get("not_written", {}).items():
        typer.echo(f"note: {name} not written: {reason}", err=True)
    if as_json:
        print(json.dumps(summary))
    else:
        show_table({k: v for k, v in rows.items() if not isinstance(v, (dict, list))}, title)
        if certificate is not None:
            print(certificate)
        print("written: " + "  ".join(str(path) for path in written.values()))
    if trouble is not None:
        typer.echo(f"blocc: {trouble}", err=True)
        raise typer.Exit(1)


@app.command("design")
def design(
    instance: Instance,
    out: Out,
    starts: Starts = None,
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
    seed: Seed = 0,
    max_iterations: Annotated[
        int, typer.Option(min=1, help="Outer iterations at most, where there are limits.")
    ] = 2000,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the checkpoint in --out.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Design link capacities that maximise profit; write tables, summary, map, report and GeoJSON.

    Capacity that is there already and cannot change goes into the column existing of links.csv, limits of single
    links into minimum and maximum (empty cells: none). Existing capacity costs its capacity_cost like any other:
    write 0 there where it is paid for.

    Ctrl-C ends the search; the best design so far is written, and --resume continues.
    """
    _check_jobs(jobs)
    network = transport.load(instance)
    checkpoint = _prepare(out, resume)
    began = time.time()
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
        bar.say("writing the report")
        written = plan.write(out)
    trouble = _trouble(plan.result, "design")
    if plan.status is not Status.INTERRUPTED:
        checkpoint.unlink(missing_ok=True)
    elif checkpoint.exists() and (resume or checkpoint.stat().st_mtime >= began):
        trouble = f"{trouble}, and the same command with --resume continues"
    _finish(
        written,
        _design_rows(plan.summary()),
        f"design of {network.name}",
        trouble,
        as_json=as_json,
        certificate=plan.result.certificate,
    )


def _prepare(out: Path, resume: bool) -> Path:
    """Check, before any work, that results can be written; the checkpoint's path."""
    checkpoint = out / "checkpoint.npz"
    try:
        out.mkdir(parents=True, exist_ok=True)
        checkpoint.touch()
    except OSError as error:
        raise InvalidInputError(f"--out {out}: cannot be written ({error.strerror})") from error
    unfinished = checkpoint.stat().st_size > 0
    if not unfinished:
        checkpoint.unlink()
    if resume and not unfinished:
        raise InvalidInputError(f"--resume: there is no checkpoint in {out}; leave --resume out")
    if unfinished and not resume:
        typer.echo(
            f"note: {checkpoint} is from an unfinished run, which --resume continues; this run replaces it",
            err=True,
        )
    return checkpoint


def _numbers(text: str, option: str, none: bool = False) -> list[float | None]:
    parts = [part.strip() for part in text.split(",")]
    values = [None if none and part == "none" else number_of(part) for part in parts]
    for part, value in zip(parts, values, strict=True):
        if value is None and not (none and part == "none"):
            raise InvalidInputError(
                f"{option}: {text!r} is not a list of numbers; write for example "
                + ("none,100,200" if none else "0,0.1,0.2")
            )
    return values


@app.command("scenarios")
def scenarios(
    instance: Instance,
    out: Out,
    demand_growth: Annotated[
        str, typer.Option(help="Relative changes of all trips, with commas between.")
    ] = "0",
    cost: Annotated[str, typer.Option(help="Factors on all capacity costs.")] = "1",
    budget: Annotated[
        str, typer.Option(help="Largest total capacity costs; none: no limit.")
    ] = "none",
    subsidy: Annotated[
        str, typer.Option(help="Money a trip served: trades profit for passengers.")
    ] = "0",
    starts: Starts = None,
    jobs: Annotated[
        int | None, typer.Option(help="Scenarios at a time; -1: all processors.", show_default="1")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Design for every combination of assumptions; write scenarios.csv and pareto.png.

    Ctrl-C ends the sweep; what was designed so far is written.
    """
    _check_jobs(jobs)
    network = transport.load(instance)
    for note in network.notes:
        typer.echo(f"note: {note}", err=True)
    with Bar(f"scenarios of {network.name}", quiet=as_json) as bar:
        table = transport.scenarios(
            network,
            demand_growth=_numbers(demand_growth, "--demand-growth"),
            cost=_numbers(cost, "--cost"),
            budget=_numbers(budget, "--budget", none=True),
            subsidy=_numbers(subsidy, "--subsidy"),
            n_jobs=jobs,
            starts=starts,
            seed=seed,
            callback=lambda done, number: bar.say(f"{done} of {number} designed"),
        )
    written = [write_atomically(out / "scenarios.csv", table.to_csv(index=False).encode())]
    if table["profit"].notna().any():
        written.append(transport.plot_pareto(table, out / "pareto.png"))
    if as_json:
        print(table.to_json(orient="records"))
    else:
        shown = [
            "demand_growth",
            "cost",
            "budget",
            "subsidy",
            "status",
            "profit",
            "trips_served",
        ]
        budgets = [
            "none" if value is None else f"{value:g}" for value in plain(table["budget"].tolist())
        ]
        print(table[shown].assign(budget=budgets).to_string(index=False, na_rep="-"))
        print("written: " + "  ".join(str(path) for path in written))
    failed = int((table["error"] != "").sum())
    if failed:
        typer.echo(
            f"blocc: {failed} of {len(table)} scenarios not certified; scenarios.csv says why in its column error",
            err=True,
        )
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


def _read_roads(
    roads: str, first_through_node: int | None, toll: float | None, distance: float | None
) -> transport.RoadNetwork:
    return transport.load_roads(
        roads,
        first_through_node=first_through_node,
        toll_factor=toll,
        distance_factor=distance,
    )


@app.command("equilibrium")
def equilibrium(
    roads: Roads,
    out: Out,
    tol: Annotated[float, typer.Option(help="Relative duality gap to reach.")] = 1e-8,
    max_iterations: Annotated[int, typer.Option(help="Sweeps over all pairs at most.")] = 2000,
    first_through_node: FirstThrough = None,
    toll_factor: TollFactor = None,
    distance_factor: DistanceFactor = None,
    as_json: Json = False,
) -> None:
    """User equilibrium of a road network; write links.csv, pairs.csv and summary.json."""
    network = _read_roads(roads, first_through_node, toll_factor, distance_factor)
    with Bar(f"equilibrium of {network.name}", quiet=as_json):
        answer = transport.equilibrium(
            network, tol=tol, max_iterations=max_iterations, on_failure="return"
        )
    trouble = None
    if answer.gap > tol:
        trouble = f"the gap is {answer.gap:.1e}, not {tol:.1e}; raise --max-iterations or --tol"
    _finish(
        answer.write(out),
        answer.summary(),
        f"equilibrium of {network.name}",
        trouble,
        as_json=as_json,
    )


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
    max_iterations: Annotated[int, typer.Option(min=1, help="Outer iterations at most.")] = 2000,
    first_through_node: FirstThrough = None,
    toll_factor: TollFactor = None,
    distance_factor: DistanceFactor = None,
    as_json: Json = False,
) -> None:
    """Expand roads at least total cost, travellers at equilibrium; write expansion.csv and summary.json."""
    network = _read_roads(roads, first_through_node, toll_factor, distance_factor)
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
    _finish(
        plan.write(out),
        plan.summary(),
        f"expansion of {network.name}",
        _trouble(plan.result, "expansion"),
        as_json=as_json,
    )
