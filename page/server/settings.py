"""What the environment sets: the sizes of the queues, and on which addresses and names the page answers."""

import ipaddress
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

log = logging.getLogger("secateur")

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Mode(Enum):
    """Where the page runs, which decides whose token is used."""

    OWNER = "owner"
    """On the machine of its only user, who is signed in there."""
    ROOM = "room"
    """On the network of a class: every visitor is anonymous."""
    SPACE = "space"
    """On a Space: visitors sign in themselves."""


@dataclass(frozen=True)
class Site:
    """On which address the page listens, and to which names it answers.

    Attributes:
        mode: Where the page runs.
        host: The address to listen on; None leaves it to the platform.
        names: The names it answers to, in lower case and without ports; None for all of them.
    """

    mode: Mode
    host: str | None
    names: frozenset[str] | None

    @property
    def uses_saved_token(self) -> bool:
        """Whether visitors act with the token saved on this machine."""
        return self.mode is Mode.OWNER


def read_site(environment: Mapping[str, str] = os.environ) -> Site:
    """Read where the page runs from the environment; exit with one line if it cannot run there."""
    if "SPACE_ID" in environment:
        return Site(Mode.SPACE, None, None)
    host = environment.get("SECATEUR_HOST", "127.0.0.1").strip().lower().strip("[]")
    listed = [name.strip().lower() for name in environment.get("SECATEUR_NAMES", "").split(",")]
    names = frozenset(_bracketed(name) for name in listed if name)
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise SystemExit(
            f"SECATEUR_HOST is {host!r}; it must be an address of this machine, such as 0.0.0.0."
        ) from None
    if address.is_loopback:
        if names:
            raise SystemExit("SECATEUR_NAMES is only for a page on the network: set SECATEUR_HOST too.")
        return Site(Mode.OWNER, host, LOOPBACK_NAMES | {_bracketed(host)})
    if not names:
        raise SystemExit(
            f"SECATEUR_HOST is {host!r}, so the page can be reached from the network: set SECATEUR_NAMES to the "
            "names or addresses that visitors type, such as classroom.local,192.168.1.20."
        )
    for name in names:
        if not is_host(name):
            raise SystemExit(
                f"SECATEUR_NAMES has {name!r}; give names or addresses without ports, with commas."
            )
    return Site(Mode.ROOM, host, LOOPBACK_NAMES | names)


def _bracketed(name: str) -> str:
    """Return an IPv6 address as it stands in an address bar."""
    try:
        return f"[{ipaddress.IPv6Address(name.strip('[]')).compressed}]"
    except ValueError:
        return name.removesuffix(".")


def is_host(name: str) -> bool:
    """Return whether a name is a host's, without a port."""
    if name.startswith("["):
        return name.endswith("]") and _bracketed(name) == name
    return bool(name) and all(part and set(part) <= _HOST_CHARACTERS for part in name.split("."))


_HOST_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


def read_setting(name: str, default: float, old_name: str = "") -> float:
    """Read a number above 0 from the environment; exit with one line for anything else."""
    if old_name in os.environ and name not in os.environ:
        log.warning("%s is now called %s; the old name will be removed.", old_name, name)
        name = old_name
    try:
        value = float(os.environ.get(name, default))
    except ValueError:
        value = -1
    if not 0 < value < float("inf"):
        raise SystemExit(f"{name} is {os.environ[name]!r}; it must be a number above 0.")
    return value


SITE = read_site()
ON_SPACE = SITE.mode is Mode.SPACE

QUEUE_SIZE = int(read_setting("SECATEUR_QUEUE", 40, "SECATEUR_LINE"))
"""How many jobs may wait for the models: a class that starts at the same time, and some visitors more."""
JOB_SECONDS = read_setting("SECATEUR_JOB_SECONDS", 300 if ON_SPACE else 3600)
"""How long one job may work on the models."""
