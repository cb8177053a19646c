"""Which requests come from this page, and which from another web site in the same browser.

A browser sends the cookies of this page with requests that other sites make. Only requests of the page itself,
and links to it, may act with them.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from page.server.settings import LOOPBACK_NAMES, Mode, Site, is_host

Scope = MutableMapping[str, Any]

HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\s,]+)(?::(\d{1,5}))?")
PORTS = {"http": "80", "https": "443"}
READING = frozenset({"GET", "HEAD"})
OWN_SITES = frozenset({"same-origin", "none"})
"""The values of Sec-Fetch-Site for requests that this page makes, or the user by typing its address."""
ACTING_PATHS = re.compile(r"/+(?:gradio_api|logout)(?:/|$)")
"""What no link of another site leads to with cookies: calls of functions, and signing out."""


class WrongHost(Exception):
    """The request names a host that is not this page's."""


def header_values(scope: Scope, name: str) -> list[str]:
    """Return all values of a header, however its name is written."""
    wanted = name.encode()
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key.lower() == wanted]


def without_headers(scope: Scope, names: Iterable[str]) -> Scope:
    """Return a request without some headers."""
    dropped = {name.encode() for name in names}
    return {**scope, "headers": [pair for pair in scope["headers"] if pair[0].lower() not in dropped]}


def split_host(host: str) -> tuple[str, str] | None:
    """Return a host's name and its port, empty if it has none; None if it is not a host."""
    found = HOST.fullmatch(host.lower())
    if found is None:
        return None
    name = found[1].removesuffix(".")
    return (name, found[2] or "") if is_host(name) else None


def checked_host(site: Site, scope: Scope) -> tuple[Scope, str]:
    """Return the request, and the host by which the visitor's browser knows the page.

    A host that a proxy forwards is believed on a Space alone; elsewhere it is removed from the request, so that
    nothing behind believes it.

    Raises:
        WrongHost: The page does not answer to the name, or the request names none, or several.
    """
    forwarded = header_values(scope, "x-forwarded-host")
    believed = site.mode is Mode.SPACE and len(forwarded) == 1 and split_host(forwarded[0]) is not None
    if not believed:
        scope = without_headers(scope, ["x-forwarded-host", "forwarded"])
    hosts = header_values(scope, "host")
    own = split_host(hosts[0]) if len(hosts) == 1 else None
    if own is None:
        raise WrongHost("A request must name one host.")
    if site.names is not None and own[0] not in site.names:
        raise WrongHost(
            f"This page does not answer to the name {own[0][:80]!r}. Open it by one of these: "
            f"{', '.join(sorted(site.names))}."
        )
    return scope, forwarded[0] if believed else hosts[0]


def own_origins(site: Site, scope: Scope, host: str) -> set[str]:
    """Return the origins that this page has in the visitor's browser."""
    scheme = str(scope.get("scheme", "http"))
    if site.mode is not Mode.SPACE:
        return {normalized(f"{scheme}://{host}")}
    protocols = header_values(scope, "x-forwarded-proto")
    if len(protocols) == 1 and protocols[0].lower() in PORTS:
        return {normalized(f"{protocols[0].lower()}://{host}")}
    origins = {normalized(f"https://{host}")}
    name = split_host(host)
    if name is not None and name[0] in LOOPBACK_NAMES:
        # No proxy: a Space's container that someone tries out on their own machine.
        origins.add(normalized(f"{scheme}://{host}"))
    return origins


def normalized(origin: str) -> str:
    """Return an origin as browsers write it, without a port that its scheme implies."""
    scheme, _, host = origin.lower().partition("://")
    parts = split_host(host)
    if parts is None or scheme not in PORTS:
        return ""
    name, port = parts
    return f"{scheme}://{name}" + (f":{port}" if port and port != PORTS[scheme] else "")


def may_use_cookies(site: Site, scope: Scope, host: str) -> bool:
    """Return whether a request acts for the visitor: it comes from this page, or opens it.

    It is judged by the headers that only a browser can set. Programs send none of them, and carry no cookies but
    their own.
    """
    own = own_origins(site, scope, host)
    if any(normalized(origin) not in own for origin in header_values(scope, "origin")):
        return False
    if all(value.lower() in OWN_SITES for value in header_values(scope, "sec-fetch-site")):
        return True
    modes = [value.lower() for value in header_values(scope, "sec-fetch-mode")]
    opens = modes == ["navigate"] and scope["method"] in READING
    return opens and ACTING_PATHS.match(scope["path"]) is None


def address_of(site: Site, headers: Mapping[str, str], client: str) -> str:
    """Return the address from which a visitor comes: on a Space the one that its proxy saw.

    Args:
        site: Where the page runs.
        headers: The request's headers, with several of one name joined by commas.
        client: The address of the connection.
    """
    if site.mode is Mode.SPACE:
        hop = headers.get("x-forwarded-for", "").split(",")[-1].strip()
        return _network(hop) or _network(client) or client
    return _network(client) or client


def _network(address: str) -> str:
    """Return an IPv4 address, or the network of an IPv6 one, all of which one household has; or nothing."""
    if found := HOST.fullmatch(address.lower()):
        address = found[1].strip("[]")
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        if not parsed.is_loopback:
            return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
