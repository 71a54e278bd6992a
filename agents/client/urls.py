"""What is asked of a server's URL before anybody connects; light enough for whoever reads recipes."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit


def is_usable(url: str) -> bool:
    """Tell whether a URL is http(s) and names a port and a host that can be looked up.

    Else the libraries below raise each an error of its own, in the middle of a call.
    """
    try:
        host, port = urlsplit(url).hostname or "", urlsplit(url).port
        if re.fullmatch(r"[\d.]+", host):
            ipaddress.ip_address(host)
        if re.search(r"[\x00-\x20\x7f<>^`{|}%\\]", host):
            return False
        looked_up = host.encode("idna")  # as the resolver will: labels of 1 to 63 characters
    except ValueError:
        return False
    return urlsplit(url).scheme in ("http", "https") and bool(looked_up) and port != 0


def may_hold_secret(url: str) -> bool:
    """Tell whether a URL has a user, a query or a fragment: where a password or a key would stand."""
    return bool(set("@?#") & set(url))
