"""Say in iptables' words what an entry of a legacy table does.  Pure; for people, decides nothing.

What our own rules and most others use is spelled out as ``iptables-save`` does; any other
match or target is named, with the size of its data: never left out, never guessed.
"""

import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from nodeagent.errors import printable
from nodeagent.legacy import entries
from nodeagent.legacy.entries import Extension
from nodeagent.model import Family

_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
_VERDICTS: Final = {-1: "DROP", -2: "ACCEPT", -4: "QUEUE", -5: "RETURN"}  # -NF_x - 1; XT_RETURN
_FLAGS: Final = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")  # TH_FIN is bit 0
_EVERY_PORT: Final = (0, 65535)
_GOTO: Final = {Family.V4: (82, 2), Family.V6: (131, 4)}  # IPT_F_GOTO, IP6T_F_GOTO: place, bit

# struct ipt_ip, struct ip6t_ip6: source, destination and their masks first
_INTERFACES_AT: Final = {Family.V4: 16, Family.V6: 64}
_PROTOCOL_AT: Final = {Family.V4: 80, Family.V6: 128}
_INVERTED_AT: Final = {Family.V4: 83, Family.V6: 132}
_INVERTED_IN, _INVERTED_OUT, _INVERTED_SOURCE, _INVERTED_DESTINATION, _INVERTED_PROTOCOL = 1, 2, 8, 16, 64


def describe(family: Family, chain: str, entry: bytes, jump: str | None, *, falls: bool) -> str:
    """Return the rule as iptables-save would print it: ``"-A CHAIN …"``."""
    words = (
        f"-A {chain}",
        *_header(family, entry),
        *(f"-m {_match(match)}" for match in entries.matches(family, entry)),
        *_action(family, entry, jump, falls=falls),
    )
    return " ".join(words)


def redirect_port(family: Family, entry: bytes) -> int | None:
    """Return the first port that *entry* redirects to, None if it is no REDIRECT."""
    target = entries.target(family, entry)
    if target.name != b"REDIRECT":
        return None
    ports = _redirect_ports(target)
    return ports[0] if ports else None


# -- the header -----------------------------------------------------------------------------------


def _header(family: Family, entry: bytes) -> Iterator[str]:
    size = family.bits // 8
    inverted = entry[_INVERTED_AT[family]]
    source, destination, source_mask, destination_mask = (entry[i * size : (i + 1) * size] for i in range(4))
    yield from _network("-s", source, source_mask, inverted & _INVERTED_SOURCE)
    yield from _network("-d", destination, destination_mask, inverted & _INVERTED_DESTINATION)
    at = _INTERFACES_AT[family]
    into, out, into_mask, out_mask = (entry[at + i * 16 : at + (i + 1) * 16] for i in range(4))
    yield from _interface("-i", into, into_mask, inverted & _INVERTED_IN)
    yield from _interface("-o", out, out_mask, inverted & _INVERTED_OUT)
    number = struct.unpack_from("=H", entry, _PROTOCOL_AT[family])[0]
    if number:
        yield _inverted(f"-p {_PROTOCOLS.get(number, number)}", inverted & _INVERTED_PROTOCOL)


def _network(option: str, address: bytes, mask: bytes, inverted: int) -> Iterator[str]:
    if not any(mask):
        return
    kind = IPv4Address if len(address) == Family.V4.bits // 8 else IPv6Address
    bits = f"{int.from_bytes(mask):0{len(mask) * 8}b}"
    ones = bits.rstrip("0")
    length = str(len(ones)) if "0" not in ones else str(kind(mask))
    yield _inverted(f"{option} {kind(address)}/{length}", inverted)


def _interface(option: str, name: bytes, mask: bytes, inverted: int) -> Iterator[str]:
    if not any(mask):
        return
    text = printable(name.split(b"\0")[0].decode("latin-1"))
    whole = mask[len(text) : len(text) + 1] != b"\0"  # the NUL is compared as well
    yield _inverted(f"{option} {text}{'' if whole else '+'}", inverted)


def _inverted(text: str, inverted: int) -> str:
    return f"! {text}" if inverted else text


# -- matches and targets --------------------------------------------------------------------------


def _match(match: Extension) -> str:
    name = printable(match.name.decode("latin-1"))
    known = _MATCHES.get((name, match.revision))
    options = known(match.data) if known else None
    return f"{name} [{len(match.data)} bytes]" if options is None else " ".join((name, *options))


def _tcp(data: bytes) -> list[str] | None:
    """Options of ``struct xt_tcp``, None if it holds more than we spell out."""
    source_from, source_to, to_from, to_to, option, flags, wanted, inverted = struct.unpack_from("=4H4B", data)
    if option or inverted:
        return None
    words = [*_ports("--sport", source_from, source_to), *_ports("--dport", to_from, to_to)]
    if flags:
        words.append(f"--tcp-flags {_flags(flags)} {_flags(wanted)}")
    return words


def _udp(data: bytes) -> list[str] | None:
    """Options of ``struct xt_udp``."""
    source_from, source_to, to_from, to_to, inverted = struct.unpack_from("=4HB", data)
    if inverted:
        return None
    return [*_ports("--sport", source_from, source_to), *_ports("--dport", to_from, to_to)]


def _ports(option: str, first: int, last: int) -> Iterator[str]:
    if (first, last) != _EVERY_PORT:
        yield f"{option} {first}" if first == last else f"{option} {first}:{last}"


def _flags(bits: int) -> str:
    names = [name for number, name in enumerate(_FLAGS) if bits >> number & 1]
    return ",".join(names) if names else "NONE"


def _multiport(data: bytes) -> list[str] | None:
    """Options of ``struct xt_multiport_v1``: flags, count, ports, whether a range begins, invert."""
    kind, count, *rest = struct.unpack_from("=BB15H15BB", data)
    ports, begins, inverted = rest[:15], rest[15:30], rest[30]
    if inverted or count > len(ports):
        return None
    text = "".join(f"{port}{':' if begin else ','}" for port, begin in zip(ports[:count], begins, strict=False))
    return [f"--{('sports', 'dports', 'ports')[min(kind, 2)]} {text[:-1]}"]


def _owner(data: bytes) -> list[str] | None:
    """Options of ``struct xt_owner_match_info``: ranges of uid and gid, which count, invert."""
    uid_from, uid_to, gid_from, gid_to, which, inverted = struct.unpack_from("=4I2B", data)
    if inverted or which not in (1, 2):
        return None
    option, first, last = ("--uid-owner", uid_from, uid_to) if which == 1 else ("--gid-owner", gid_from, gid_to)
    return [f"{option} {first}" if first == last else f"{option} {first}-{last}"]


def _comment(data: bytes) -> list[str]:
    text = data.split(b"\0")[0].decode("latin-1")
    return [f'--comment "{printable(text)}"']


def _conntrack(data: bytes) -> list[str] | None:
    """Spell ``struct xt_conntrack_mtinfo3`` out where it asks for the state INVALID only."""
    which, inverted, states = struct.unpack_from("=3H", data, 146)
    return ["--ctstate INVALID"] if (which, inverted, states) == (1, 0, 1) else None


def _bpf(data: bytes) -> list[str] | None:
    """Options of ``struct xt_bpf_info_v1`` where it names a pinned program (mode 1)."""
    if struct.unpack_from("=H", data)[0] != 1:
        return None
    return [f"--object-pinned {printable(data[8:520].split(bytes(1))[0].decode('latin-1'))}"]


_MATCHES: Final[dict[tuple[str, int], Callable[[bytes], list[str] | None]]] = {
    ("tcp", 0): _tcp,
    ("udp", 0): _udp,
    ("multiport", 1): _multiport,
    ("owner", 1): _owner,
    ("comment", 0): _comment,
    ("conntrack", 3): _conntrack,
    ("bpf", 1): _bpf,
}


def _action(family: Family, entry: bytes, jump: str | None, *, falls: bool) -> Iterator[str]:
    place, bit = _GOTO[family]
    target = entries.target(family, entry)
    name = printable(target.name.decode("latin-1"))
    ports = _redirect_ports(target) if name == "REDIRECT" else None
    if jump is not None:
        yield f"{'-g' if entry[place] & bit else '-j'} {printable(jump)}"
    elif falls:
        return
    elif not name:
        number = entries.verdict(target.data)
        yield f"-j {_VERDICTS.get(number, number)}"
    elif ports:
        yield f"-j REDIRECT --to-ports {ports[0]}" + (f"-{ports[1]}" if ports[1] != ports[0] else "")
    elif name == "CT" and _is_plain_zone(target):
        yield f"-j CT --zone {struct.unpack_from('=H', target.data, 2)[0]}"
    else:
        yield f"-j {name} [{len(target.data)} bytes]"


def _redirect_ports(target: Extension) -> tuple[int, int] | None:
    """Return first and last port of ``nf_nat_ipv4_multi_range_compat`` or ``nf_nat_range``.

    Both end with two ports in network order; the first has a count ahead of its flags.
    """
    size = {24: 20, 40: 40}.get(len(target.data))  # with padding: without
    if size is None:
        return None
    flags = struct.unpack_from("=I", target.data, 4 if size == 20 else 0)[0]  # noqa: PLR2004  # the IPv4 structure
    first, last = struct.unpack_from("!2H", target.data, size - 4)
    return (first, last) if flags & 2 else None  # NF_NAT_RANGE_PROTO_SPECIFIED


def _is_plain_zone(target: Extension) -> bool:
    """Say whether ``struct xt_ct_target_info_v1`` gives a zone and nothing else."""
    flags = struct.unpack_from("=H", target.data)[0]
    return flags == 0 and not any(target.data[4:60])
