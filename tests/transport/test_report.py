"""The report: one file, readable by a planner, true to the design, and alive in a browser."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies

from blocc.applications import transport
from blocc.applications.transport import reference, report
from blocc.applications.transport import sensitivity as sensitivity_module
from blocc.applications.transport.sensitivity import Sensitivity, sensitivity

graph_objects = pytest.importorskip("plotly.graph_objects")
SHARED = Path(__file__).parents[3] / "shared" / "data" / "tntp"


class Page(HTMLParser):
    """Elements, attributes and visible text; scripts by their id."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.texts, self.scripts = [], [], [], {}
        self.inside = None
        self.feed(text)
        self.close()
        self.visible = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("script", "style"):
            self.inside = dict(attrs).get("id", "")

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.inside = None

    def handle_data(self, data):
        if self.inside is None:
            self.texts.append(data)
        else:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data

    @property
    def figures(self):
        return json.loads(self.scripts["figures"])


def answered(network, capacity, **changes):
    """What :func:`report.render` takes, for given capacities."""
    answer = transport.respond(network, capacity)
    revenue = float((network.trips * network.revenue) @ answer.share)
    cost = float(network.capacity_cost @ capacity)
    certificate = {
        "lower_gap": 2e-8,
        "violation": 0.0,
        "dual_infeasibility": 0.0,
        "complementarity": 3e-9,
        "stationarity": 0.5,
        "gamma": 64.0,
        "moved": 0.25,
        "radius": 0.0,
    }
    summary = {
        "status": "stationary",
        "message": "stationary: a sentence",
        "profit": revenue - cost,
        "revenue": revenue,
        "cost": cost,
        "bound": 987.65,
        "trips": float(network.trips.sum()),
        "trips_served": float(network.trips @ answer.share),
        "share_served": 0.5,
        "links": len(capacity),
        "links_built": int(np.count_nonzero(capacity)),
        "links_at_capacity": 1,
        "certificate": certificate,
        "seconds": 12.5,
        "options": {"tol": 1e-6},
        "versions": {"blocc": "1.2.3"},
        **changes,
    }
    return {
        "capacity": capacity,
        "flow": answer.flow,
        "price": answer.price,
        "share": answer.share,
        "path_cost": answer.path_cost,
        "summary": summary,
    }


RECORDS = [
    {
        "iteration": k,
        "gamma": 8.0 * 2 ** (k // 3),
        "response": -1.0 - k,
        "penalized": -20.0 + k,
        "penalty": 2.0 / (1 + k),
        "stationarity": 0.1,
        "seconds": 0.1 * k,
    }
    for k in range(12)
]


@pytest.fixture(scope="module")
def seville():
    """Every third link closed, the others of different sizes: some full, some not."""
    network = transport.load("seville")
    m = len(network.link_id)
    capacity = np.where(np.arange(m) % 3 == 0, 0.0, 2.0 + np.arange(m) % 40)
    return network, answered(network, capacity)


@pytest.fixture
def short(monkeypatch):
    """Leave plotly.js out of the page: its five megabytes are not what is looked at."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")


@pytest.fixture(scope="module")
def named():
    """A small network whose stations and links have the labels given."""
    tables = transport.load("three_node").to_tables()

    def make(labels, name="three_node"):
        links, demand = tables.links.copy(), tables.demand.copy()
        names = dict(zip([1, 2, 3], labels, strict=True))
        for table, columns in (
            (links, ["from_node", "to_node"]),
            (demand, ["origin", "destination"]),
        ):
            for column in columns:
                table[column] = table[column].map(names)
        links["link_id"] = [f"{labels[0]}{k}" for k in range(6)]
        nodes = {"node": labels, "x": [0.0, 1.0, 2.0], "y": [0.0, 1.0, 0.0]}
        return transport.from_tables(links, demand, nodes, name)

    return make


def test_the_page_refers_to_nothing_outside_itself(seville):
    network, parts = seville
    text = report.render(network, **parts, records=RECORDS)
    page = Page(text)
    assert not [a for a, _ in page.attributes if a in ("src", "href", "srcset", "action", "data")]
    assert "url(" not in text.split("</style>")[0]
    assert "@import" not in text.split("</style>")[0]
    assert len(text) < 6e6


def test_every_figure_is_one_that_plotly_knows(seville, short):
    network, parts = seville
    figures = Page(report.render(network, **parts, records=RECORDS)).figures
    assert set(figures) == {"map", "shares", "money", "origins", "costs", "convergence"}
    for figure in figures.values():
        graph_objects.Figure(figure)  # raises at a property it does not know


def test_header_shows_status_profit_bound_seconds_versions_and_notes(named, short):
    network = transport.from_tables(
        {
            "link_id": [1],
            "from_node": ["a"],
            "to_node": ["b"],
            "travel_time": [1.0],
            "capacity_cost": [1.0],
        },
        {
            "origin": ["a", "b"],
            "destination": ["b", "a"],
            "trips": [3.0, 1.0],
            "alternative_time": [2.0, 2.0],
            "revenue": [4.0, 4.0],
        },
        {"node": ["a", "b"], "x": [0.0, 1.0], "y": [0.0, 0.0]},
    )
    assert network.notes
    parts = answered(network, np.array([1.5]))
    page = Page(report.render(network, **parts))
    for expected in (
        "Stationary: a sentence.",
        f"{parts['summary']['profit']:.4g}",
        "987.6",
        "12.5",
        "blocc 1.2.3",
        network.notes[0],
    ):
        assert expected in page.visible


def test_hovering_text_holds_the_figures_of_the_link(seville, short):
    network, parts = seville
    links = next(
        t
        for t in Page(report.render(network, **parts)).figures["map"]["data"]
        if t["name"] == "links"
    )
    m = len(network.link_id)
    assert len(links["text"]) == len(links["x"]) == 3 * m
    for i in range(m):
        text = links["text"][i]
        assert text.startswith(f"<b>link {network.link_id[i]}</b>")
        if parts["capacity"][i] == 0:
            assert "not built" in text
            continue
        load = parts["flow"][i] / parts["capacity"][i]
        price = parts["price"][i] if load > 0.999 else 0.0  # below, nothing but rounding
        for figure in (
            f"capacity {parts['capacity'][i]:.4g}",
            f"flow {parts['flow'][i]:.4g}",
            f"load {100 * load:.1f} %",
            f"price {price:.4g}<br>",
        ):
            assert figure in text


def test_arrows_of_both_directions_do_not_overlap_and_width_follows_capacity(named):
    network = named(["a", "b", "c"])
    capacity = np.array([4.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    flow = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    back = next(
        i
        for i in range(6)
        if network.tail[i] == network.head[0] and network.head[i] == network.tail[0]
    )
    capacity[[1, back]] = capacity[[back, 1]]
    flow[[1, back]] = flow[[back, 1]]
    figure = report.design_map(network, capacity, flow, np.zeros(6), flow / np.maximum(capacity, 1))
    shapes = {t["name"]: t for t in figure["data"] if t.get("fill") and t["meta"] == "load"}
    assert len(shapes) == 2  # a quarter full, and full: two colours
    ends = network.positions[[network.tail[0], network.head[0]]]
    along = ends[1] - ends[0]
    sides, widths = [], []
    for trace in shapes.values():
        corners = np.stack([trace["x"], trace["y"]], axis=1)[:-1].astype(float)
        side = (corners - ends[0]) @ np.array([along[1], -along[0]])
        assert (side > 0).all() or (side < 0).all()
        sides.append(np.sign(side[0]))
        widths.append(np.sort(np.abs(side))[-2] - np.abs(side).min())  # the shaft, not the barb
    assert set(sides) == {-1.0, 1.0}
    quarter_full = next(i for i, name in enumerate(shapes) if name.startswith("load 3"))
    assert widths[quarter_full] > widths[1 - quarter_full]


def test_heat_map_has_each_pair_in_its_cell(seville):
    network, parts = seville
    figure = report.shares_figure(network, parts["share"])
    (heat,) = figure["data"]
    columns = {text: k for k, text in enumerate(figure["layout"]["xaxis"]["ticktext"])}
    rows = {text: k for k, text in enumerate(figure["layout"]["yaxis"]["ticktext"])}
    for i in range(len(network.trips)):
        row = rows[str(network.nodes[network.origin[i]])]
        column = columns[str(network.nodes[network.destination[i]])]
        assert heat["z"][row][column] == parts["share"][i]
    assert np.isnan(heat["z"]).sum() == heat["z"].size - len(network.trips)


def test_money_parts_add_up(seville):
    network, parts = seville
    profit = parts["summary"]["profit"]
    (bar,) = report.money_figure(network, parts["capacity"], parts["share"])["data"]
    assert bar["x"][2] == pytest.approx(profit, rel=1e-12)
    (origins,) = report.origins_figure(network, parts["share"])["data"]
    (costs,) = report.costs_figure(network, parts["capacity"])["data"]
    assert sum(origins["x"]) == pytest.approx(parts["summary"]["revenue"], rel=1e-12)
    assert sum(costs["x"]) == pytest.approx(parts["summary"]["cost"], rel=1e-12)


def test_convergence_shows_profit_and_leaves_gaps_where_nothing_was_measured():
    records = [dict(record) for record in RECORDS]
    records[3]["penalized"] = float("nan")
    del records[4]["penalty"]
    figure = report.convergence_figure(records, None)
    curves = {trace["name"]: trace["y"] for trace in figure["data"]}
    profit = curves["profit at the passengers' answer"]
    assert profit[: len(records)] == [1.0 + k for k in range(12)]
    assert curves["smoothed profit"][3] is None
    assert curves["penalty left"][4] is None
    assert report.convergence_figure([], None) is None
    long = report.convergence_figure(RECORDS * 1000, None)
    assert all(len(trace["x"]) <= 1502 for trace in long["data"])


def test_a_search_over_prices_shows_its_profit_alone():
    records = [
        {"iteration": k, "response": -float(k), "gamma": math.nan, "penalized": math.nan}
        for k in range(5)
    ]
    closing = {"iteration": 5, "response": -5.0, "gamma": 64.0, "penalized": -5.1, "penalty": 0.1}
    figure = report.convergence_figure([*records, closing], None)
    assert [trace["name"] for trace in figure["data"]] == ["profit at the passengers' answer"]
    assert not any(axis.startswith("yaxis") for axis in figure["layout"] if axis != "yaxis")
    both = report.convergence_figure([*records, closing, {**closing, "iteration": 6}], None)
    assert len(both["data"]) == 4


def test_hovering_tells_limits_and_what_exists():
    network = dataclasses.replace(
        transport.load("three_node"),
        minimum=np.array([2.0, 0.5, np.nan, np.nan, 0.0, np.nan]),
        maximum=np.array([2.0, 3.0, 4.0, np.nan, np.nan, np.nan]),
    )
    ones = np.ones(6)
    told = next(
        trace["text"]
        for trace in report.design_map(network, ones, ones, ones, ones)["data"]
        if trace["name"] == "links"
    )
    assert told[0].endswith("existing: cannot change")
    assert told[1].endswith("limits: at least 0.5, at most 3")
    assert told[2].endswith("limits: at most 4")
    assert told[3].endswith("a trip of capacity")
    assert told[4].endswith("a trip of capacity")  # a minimum of zero is none


@pytest.mark.parametrize(("name", "value"), [("lower_gap", 1e-3), ("violation", float("nan"))])
def test_the_certificate_marks_what_does_not_hold(seville, short, name, value):
    network, parts = seville
    certificate = {**parts["summary"]["certificate"], "stationarity": 1e-9}
    good = Page(
        report.render(
            network, **parts | {"summary": parts["summary"] | {"certificate": certificate}}
        )
    )
    assert good.visible.count("✓") == 5
    assert "✗" not in good.visible
    bad = parts["summary"] | {"certificate": certificate | {name: value}}
    page = Page(report.render(network, **parts | {"summary": bad}))
    assert page.visible.count("✗") == 1


def test_global_optimality_is_called_unproven_unless_the_status_is_optimal(seville, short):
    network, parts = seville
    open_question = "That no other design earns more"
    assert open_question in Page(report.render(network, **parts)).visible
    summary = {**parts["summary"], "status": "optimal"}
    assert open_question not in Page(report.render(network, **parts | {"summary": summary})).visible


def test_designs_that_build_nothing_or_were_never_iterated_are_reported(named, short):
    network = named(["a", "b", "c"])
    page = Page(
        report.render(network, **answered(network, np.zeros(6), certificate={}, bound=None))
    )
    assert "builds nothing" in page.visible
    assert "no upper bound" in page.visible
    assert "No iterations were recorded" in page.visible
    assert "convergence" not in page.figures
    for figure in page.figures.values():
        graph_objects.Figure(figure)


label = strategies.text(min_size=1, max_size=12).filter(
    lambda text: text == text.strip() and text.isprintable()
)


@given(labels=strategies.lists(label, min_size=3, max_size=3, unique=True), name=label)
@example(["</script><script>alert(1)</script>", "<b onmouseover='x'>", "\"'&amp;"], "<!--")
@example(["駅", "%{x}", "</title><img src=x onerror=alert(1)>"], "]]>")
@example(["&lt;", "$x^2$", "2020-01-01"], "</style>")
@settings(max_examples=30, deadline=None)
def test_no_label_breaks_the_page(named, labels, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plotly.offline.get_plotlyjs", lambda: "")
        network = named(labels, name)
        capacity = np.array([1.0, 0.5, 0.25, 0.0, 0.0, 0.0])
        worth = Sensitivity(np.array([0]), np.array([0.1]), np.array([-1.0]), np.array([0.5]))
        page = Page(report.render(network, **answered(network, capacity), worth=worth))
    assert page.tags.count("script") == 3
    assert not {"img", "b", "a", "iframe"} & set(page.tags)
    assert not [a for a, _ in page.attributes if a.startswith("on") or a == "src"]
    assert f"Design of {' '.join(name.split())}" in page.visible
    stations = next(t for t in page.figures["map"]["data"] if t.get("meta") == "stations")
    for text, node in zip(stations["text"], network.nodes, strict=True):
        assert "<" not in text  # Plotly reads tags in texts; entities are shown as their characters
        assert Page(text).visible == " ".join(str(node).split())


def test_sensitivity_is_the_profit_that_cvxpy_finds_at_the_changed_capacities():
    network = transport.load("nine_node")
    capacity = np.where(np.arange(30) % 4 == 0, 0.0, 1.0 + 0.05 * np.arange(30))
    answer = transport.respond(network, capacity)
    found = sensitivity(network, capacity, answer.price)
    assert len(found.link) == 10
    assert (capacity[found.link] > 0).all()
    base = reference.profit(network, capacity)
    for link, step, more, less in list(
        zip(found.link, found.step, found.more, found.less, strict=True)
    )[::3]:
        assert step == pytest.approx(0.1 * capacity[link])
        for sign, change in ((1.0, more), (-1.0, less)):
            changed = capacity.copy()
            changed[link] += sign * step
            assert change == pytest.approx(reference.profit(network, changed) - base, abs=2e-5)


def test_sensitivity_of_nothing_and_without_time():
    network = transport.load("three_node")
    nothing = sensitivity(network, np.zeros(6), np.ones(6))
    late = sensitivity(network, np.ones(6), np.ones(6), seconds=-1.0)
    assert len(nothing.link) == len(late.link) == 0


def test_sensitivity_of_a_city_is_left_out_and_the_report_says_so(seville, short, monkeypatch):
    network, parts = seville
    m, p = len(network.link_id), len(network.trips)
    monkeypatch.setattr(sensitivity_module, "_LARGEST", m * p - 1)
    worth = sensitivity(network, parts["capacity"], parts["price"])
    assert len(worth.link) == 0
    page = Page(report.render(network, **parts, worth=worth))
    assert "so large that asking the passengers again" in page.visible


def test_a_city_of_93135_pairs_fits_in_ten_megabytes():
    if not (SHARED / "ChicagoSketch").is_dir():
        pytest.skip(f"{SHARED / 'ChicagoSketch'} is absent: the TNTP data is not ours to ship")
    network = transport.load_roads(SHARED / "ChicagoSketch", first_through_node=388).to_transit()
    assert len(network.trips) > 93_000
    random = np.random.default_rng(0)
    m = len(network.link_id)
    capacity = np.where(random.random(m) < 0.2, 0.0, 1000 * random.random(m))
    share = random.random(len(network.trips))
    text = report.render(
        network,
        capacity=capacity,
        flow=0.9 * capacity,
        price=random.random(m),
        share=share,
        path_cost=share,
        summary={},
    )
    assert len(text.encode()) < 10e6
    shares = Page(text).figures["shares"]["data"][0]
    assert shares["type"] == "bar"  # a matrix of 387 by 387 would say nothing
    assert sum(shares["y"]) == pytest.approx(network.trips.sum(), rel=1e-5)


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    chrome = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if not (chrome and driver):
        pytest.skip("no chromium with chromedriver here; on Debian: apt install chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    folder = tmp_path_factory.mktemp("browser")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1200,1000",
        f"--user-data-dir={folder}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    started.set_page_load_timeout(90)
    started.set_script_timeout(60)
    yield started
    started.quit()


@pytest.fixture(scope="module")
def opened(browser, seville, tmp_path_factory):
    """The report of Seville in the browser, drawn."""
    network, parts = seville
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report.render(network, **parts, records=RECORDS), encoding="utf-8")
    browser.get(path.as_uri())
    return browser


def test_the_page_opens_without_a_console_error_and_loads_nothing(opened):
    assert opened.get_log("browser") == []
    assert opened.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_the_map_draws_its_links(opened, seville):
    network, _parts = seville
    drawn = opened.execute_script(
        "const map = document.getElementById('map');"
        "return {traces: map._fullData.filter(t => t.visible === true).length,"
        " shown: map._fullData.filter(t => t.visible === true && t.fill === 'toself').length,"
        " fills: map.querySelectorAll('path.js-fill').length,"
        " points: map.querySelectorAll('.scatterlayer .point').length,"
        " labels: map.querySelectorAll('.textpoint').length,"
        " figures: [...document.querySelectorAll('.figure')].every(f => f.querySelector('svg'))}"
    )
    assert drawn["shown"] >= 2  # several loads, so several colours
    assert drawn["fills"] == drawn["shown"]
    assert drawn["labels"] == len(network.nodes)
    assert drawn["points"] >= 3 * len(network.link_id)
    assert drawn["figures"]


def test_hovering_over_a_link_shows_its_figures(opened, seville):
    from selenium.webdriver import ActionChains

    network, parts = seville
    capacity = parts["capacity"]
    link = int(
        np.argmax(
            capacity
            * np.hypot(*np.diff(network.positions[[network.tail, network.head]], axis=0)[0].T)
        )
    )
    m = len(network.link_id)
    place = opened.execute_script(
        "const map = document.getElementById('map'); map.scrollIntoView();"
        "const trace = map._fullData.find(t => t.name === 'links'), axes = map._fullLayout;"
        "const box = map.getBoundingClientRect(), k = arguments[0];"
        "return [box.left + axes.xaxis._offset + axes.xaxis.l2p(trace.x[k]),"
        " box.top + axes.yaxis._offset + axes.yaxis.l2p(trace.y[k])]",
        m + link,  # the middle one of its three places
    )
    mouse = ActionChains(opened)
    mouse.w3c_actions.pointer_action.move_to_location(round(place[0]) - 2, round(place[1]))
    mouse.w3c_actions.pointer_action.move_to_location(round(place[0]), round(place[1]))
    mouse.perform()
    shown = opened.execute_async_script(
        "const done = arguments[0], began = Date.now();"
        "(function look() { const box = document.querySelector('#map .hovertext');"
        " if (box || Date.now() - began > 10000) done(box && box.textContent);"
        " else setTimeout(look, 50); })();"
    )
    assert shown is not None, "no hover box appeared"
    for expected in (
        f"link {network.link_id[link]}",
        f"{network.nodes[network.tail[link]]} → {network.nodes[network.head[link]]}",
        f"capacity {capacity[link]:.4g}",
        f"flow {parts['flow'][link]:.4g}",
        f"load {100 * parts['flow'][link] / capacity[link]:.1f} %",
    ):
        assert expected in shown


def test_the_map_can_be_coloured_by_price(opened):
    opened.execute_script("document.querySelector('.choice button[value=price]').click()")
    layers = opened.execute_script(
        "const map = document.getElementById('map');"
        "return [...new Set(map._fullData.filter(t => t.visible === true && t.fill === 'toself').map(t => t.meta))]"
    )
    assert layers == ["price"]
    opened.execute_script("document.querySelector('.choice button[value=load]').click()")
    assert opened.get_log("browser") == []


def test_the_page_fits_a_phone(opened):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        opened.refresh()
        width = opened.execute_script("return document.documentElement.scrollWidth")
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width <= 390
