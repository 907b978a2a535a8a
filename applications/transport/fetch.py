"""Fetch TNTP networks by name: pinned commit, pinned checksums, nothing shipped.

The data is for academic research purposes, under the terms in :data:`LICENCE`; users are responsible for its use.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from blocc.errors import InvalidInputError, require

COMMIT = "d1639b4ef218c17928ba573e806ddf8ba5e7ae6d"
BASE_URL = f"https://raw.githubusercontent.com/bstabler/TransportationNetworks/{COMMIT}"
LICENCE = (
    "Transportation Networks for Research (github.com/bstabler/TransportationNetworks): donated data, for academic "
    "research purposes only; users are fully responsible for results and must indicate the source in publications."
)

# folder in the repository, and sha256 of each file at COMMIT
NETWORKS = {
    "SiouxFalls": (
        "SiouxFalls",
        {
            "net": "ace99b24cec69c273ff0cf3d6d074110177f0cc0ae24b0c7a9f4f4cb5e27635c",
            "trips": "56f9566857f3f66730fd5c4232258d7ee3ac2931a476526331afd062f4958de7",
            "flow": "5d0b83a22ecc3ce79dabb2b2972162b78c5eda571dcb5b3687429d8397654fee",
        },
    ),
    "Anaheim": (
        "Anaheim",
        {
            "net": "99933b415e9500b13907829c37a43cfa9141714fad5af279081e28e5f9356f9a",
            "trips": "906893854cd0db4479c0b5f07678ce5616fa8e42e2b997f918c378309c66a94e",
            "flow": "eecd21c2a908b6a1c6729045ea260e96df1de026f05281d341fc281f2552cebe",
        },
    ),
    "Barcelona": (
        "Barcelona",
        {
            "net": "74ea13010beca70c641417c38bc900d6d7a2a600f23f18f76e417f7090c69bbd",
            "trips": "de485bcc423ff66c8e6601ae718255614d19099c0d0536ffcdb62972e1fcbbe1",
            "flow": "cee8df9f7930e52d5779aa6d3c14b25bcede54582c827971b5b5b3fe2f6aa345",
        },
    ),
    "ChicagoSketch": (
        "Chicago-Sketch",
        {
            "net": "4396bff6101cb5ad3edaf0eb5b9aec051055cb7f0d85be907d24b43f98bf0027",
            "trips": "efe68abffc4af09e344cf1e175cfc048c08f4cd8f1f5454f74371b40e8245edc",
            "flow": "068ee541d0e4d06e1e829bebc629ecf18c0f1eaf3b8239aff82de7ac3631370b",
        },
    ),
}


def fetch(
    name: str, directory: str | PathLike[str], *, base_url: str = BASE_URL
) -> dict[str, Path]:
    """Fetch a TNTP network's files; a file that is there and intact is not fetched again.

    Parameters
    ----------
    name : str
        ``"SiouxFalls"``, ``"Anaheim"``, ``"Barcelona"`` or ``"ChicagoSketch"``.
    directory : path
        Created if missing.
    base_url : str
        Where the repository's files are at the pinned commit, for a mirror.

    Returns
    -------
    dict of str to Path
        ``"net"``, ``"trips"`` and ``"flow"``.

    Raises
    ------
    InvalidInputError
        If the name is unknown, a file cannot be fetched, or its checksum is wrong.
    MissingDependencyError
        If pooch is not installed.
    """
    if name not in NETWORKS:
        raise InvalidInputError(
            f"{name!r} is not a network that can be fetched; choose one of {', '.join(NETWORKS)}"
        )
    pooch = require("pooch", "fetch", "Fetching a network")
    folder, files = NETWORKS[name]
    registry = {f"{name}_{part}.tntp": digest for part, digest in files.items()}
    found = {}
    for part, (file, digest) in zip(files, registry.items(), strict=True):
        url = f"{base_url.rstrip('/')}/{folder}/{file}"
        try:
            found[part] = Path(
                pooch.retrieve(url, known_hash=f"sha256:{digest}", fname=file, path=Path(directory))
            )
        except ValueError as error:
            if "hash" not in str(error):
                raise InvalidInputError(
                    f"{url}: cannot be fetched; give a base_url that begins with https://"
                ) from error
            raise InvalidInputError(
                f"{url}: its content has another sha256 than the pinned {digest[:12]}...; nothing was kept. "
                "Try again, or fetch the file by hand and check its source"
            ) from error
        except OSError as error:  # also the base class of every network error
            raise InvalidInputError(
                f"{url}: cannot be fetched ({type(error).__name__}); check the network and that {directory} can be "
                f"written, or put {', '.join(registry)} there by hand"
            ) from error
    return found
