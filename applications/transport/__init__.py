"""Transit network capacity design: links, demand and costs in; capacities with a certificate out.

>>> from blocc.applications import transport
>>> plan = transport.design(transport.load("three_node"))
>>> round(plan.profit, 4)
1.7616
"""

from .design import Answer, Design, design, respond
from .equilibrium import Equilibrium, equilibrium
from .expansion import Expansion, expand
from .network import Network, from_networkx, from_tables, load
from .roads import RoadNetwork, load_roads, roads_from_tables
from .scenarios import pareto, plot_pareto, scenarios
from .tntp import from_tntp, read_tntp

__all__ = [
    "Answer",
    "Design",
    "Equilibrium",
    "Expansion",
    "Network",
    "RoadNetwork",
    "design",
    "equilibrium",
    "expand",
    "from_networkx",
    "from_tables",
    "from_tntp",
    "load",
    "load_roads",
    "pareto",
    "plot_pareto",
    "read_tntp",
    "respond",
    "roads_from_tables",
    "scenarios",
]
