r"""Label values that nobody can inject through, and the format that a scraper asked for."""

from enum import Enum
from typing import Final

from nodeagent.errors import printable

LONGEST: Final = 253
"""Characters of a label's value: as long as any name in Kubernetes."""

_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Format(Enum):
    """What /metrics speaks; the value is the content type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def clean(text: str) -> str:
    r"""Return *text* so that any scraper takes it: printable, encodable, not too long.

    >>> clean("cart-0"), clean("a\nb"), clean("\ud800")
    ('cart-0', 'a\\nb', '\\ud800')
    """
    return text if text.isprintable() and len(text) <= LONGEST else printable(text, LONGEST)


def quote(text: str) -> str:
    r"""Return *text* as a label's value, quotes included.

    >>> print(quote('x"} 1\nup 0'))
    "x\"} 1\\nup 0"
    """
    return f'"{clean(text).translate(_ESCAPES)}"'


def negotiate(accept: str) -> Format:
    """Return the format to answer in: the one the *Accept* header ranks first, in case of doubt plain text.

    >>> negotiate("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5").name
    'OPENMETRICS'
    >>> negotiate("application/openmetrics-text;version=2.0.0, */*").name
    'TEXT'
    """
    offers = [_offer(entry) for entry in accept.split(",")]
    open_rank = max((rank for kind, rank in offers if kind is Format.OPENMETRICS), default=0.0)
    text_rank = max((rank for kind, rank in offers if kind is Format.TEXT), default=0.0)
    return Format.OPENMETRICS if open_rank > 0 and open_rank >= text_rank else Format.TEXT


def accepts_gzip(accept_encoding: str) -> bool:
    """Say whether an *Accept-Encoding* header takes gzip.

    >>> accepts_gzip("deflate, gzip;q=0.5"), accepts_gzip("gzip;q=0"), accepts_gzip("")
    (True, False, False)
    """
    found = (_parameters(entry) for entry in accept_encoding.split(","))
    return any(name == "gzip" and _rank(parameters) > 0 for name, parameters in found)


def _offer(entry: str) -> tuple[Format | None, float]:
    name, parameters = _parameters(entry)
    if name == "application/openmetrics-text" and parameters.get("version", "1.0.0") in {"0.0.1", "1.0.0"}:
        return Format.OPENMETRICS, _rank(parameters)
    return (Format.TEXT if name == "text/plain" else None), _rank(parameters)


def _parameters(entry: str) -> tuple[str, dict[str, str]]:
    name, *rest = (part.strip().lower() for part in entry.split(";"))
    pairs = (part.partition("=") for part in rest)
    return name, {key.strip(): value.strip() for key, _, value in pairs}


def _rank(parameters: dict[str, str]) -> float:
    try:
        return float(parameters.get("q", "1"))
    except ValueError:
        return 0.0
