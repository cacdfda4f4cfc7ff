"""Whether a hub accepts connections, found out in a few seconds whatever happens."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from diffsynth.hub.patience import Hiccup, HubDown, bounded
from diffsynth.hub.settings import Patience, without_password
from diffsynth.hub.sources import Source, short

PORTS = {"http": 80, "socks4": 1080, "socks5": 1080, "socks5h": 1080}


def probe(source: Source, patience: Patience) -> None:
    """Find out whether a hub accepts connections; where a proxy is to be used, whether that one does.

    Raises:
        HubDown: it does not.
    """
    try:
        name, host, port = _door(source.endpoint)
    except ValueError as error:
        raise HubDown(f"{without_password(source.endpoint)} is no address ({short(error)})") from error
    try:
        bounded(lambda: socket.create_connection((host, port), timeout=patience.probe).close(), patience.probe)
    except Hiccup:
        raise HubDown(f"{name} did not answer within {patience.probe:g} s") from None
    except (OSError, ValueError) as error:  # a host that cannot be encoded is a ValueError
        raise HubDown(f"{name} cannot be reached ({short(error)})") from error


def _door(endpoint: str) -> tuple[str, str, int]:
    """Return what connections to an address begin at: a name for messages, the host and the port.

    Raises:
        ValueError: it is no address, or that of the proxy is none.
    """
    parts = urlsplit(endpoint)
    if not parts.hostname:
        raise ValueError("it names no host")
    proxies = {} if proxy_bypass(parts.hostname) else getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    name = parts.hostname
    if proxy:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        name = f"the proxy {parts.hostname}"
    return name, parts.hostname or "", parts.port or PORTS.get(parts.scheme, 443)
