"""Encode a rule set with python-iptables: ``python -m nodeagent.legacy.encoder 4|6 BPFFS``.

A child that lives for one rule set and one family: the canonical rule set on standard input,
a :class:`~nodeagent.legacy.encoded.Result` on standard output, exit code 0 even where the kernel refuses.  It makes a
netns of its own first and works in nothing else.  What it returns is what the kernel *read
back*, so that what is replayed later has been accepted once.

python-iptables (1.2.0) is safe only like this; each of these has been seen to bite:

- it puts pipes in the place of descriptor 1: the result leaves through a copy made before;
- it cannot hold REDIRECT of both families in one process: one family a process;
- its tables belong to the netns of their first use, its handles pin it: one netns, then exit;
- it crashes with threads: there are none;
- it writes the mask of IPv6 interface names wrong, so that ``lo`` would match ``net1``:
  :func:`_mend_interface_masks`;
- importing it runs ldconfig unless XTABLES_LIBDIR is set, and pulls setuptools in for distutils
  unless SETUPTOOLS_USE_DISTUTILS says otherwise when the interpreter starts: the parent sets it.
"""

import ctypes.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from nodeagent.compile.canonical import from_json
from nodeagent.compile.legacy import CHAIN_PREFIX, LegacyRule, lower
from nodeagent.errors import KernelError, NodeagentError
from nodeagent.legacy.encoded import Encoded, Result
from nodeagent.legacy.xtables import Kernel
from nodeagent.model import Family
from nodeagent.netns.kernel import unshare_netns

_INTERFACE_SIZE: Final = 16  # IFNAMSIZ

_SONAMES: Final = {"xtables": "libxtables.so.12", "ip4tc": "libip4tc.so.2", "ip6tc": "libip6tc.so.2", "c": "libc.so.6"}
"""iptables 1.8's libraries.  ctypes would look for each by running gcc, ld and ldconfig, several times over: only
where there is none of this name."""


def main() -> None:
    """Encode what standard input holds, report, exit without python-iptables' own farewell."""
    descriptor = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    family, bpffs = Family(int(sys.argv[1])), sys.argv[2]
    try:
        result = Result(tuple(_encode(sys.stdin.buffer.read(), family, bpffs)))
    except (NodeagentError, OSError) as error:
        result = Result(error=str(error))
    except Exception:  # noqa: BLE001  # python-iptables raises bare Exceptions; the parent says what was tried
        result = Result(error=traceback.format_exc(limit=-1).strip().replace("\n", " "))
    with os.fdopen(descriptor, "wb") as out:
        out.write(msgspec.msgpack.encode(result))
    os._exit(0)


def _encode(ruleset: bytes, family: Family, bpffs: str) -> Iterator[Encoded]:
    rules = lower(from_json(ruleset), family, bpffs)
    unshare_netns()
    iptc = _python_iptables()  # loads ip_tables and ip6_tables, which the kernel does not do for a socket option
    with Kernel(family) as kernel:
        for name in dict.fromkeys(rule.table for rule in rules):
            pristine = kernel.read(name)
            _commit(iptc, name, family, [rule for rule in rules if rule.table == name])
            yield Encoded(pristine, kernel.read(name))


def _commit(iptc: Any, name: str, family: Family, rules: list[LegacyRule]) -> None:  # noqa: ANN401  # python-iptables has no types
    """Write *rules* to table *name* of this netns with python-iptables."""
    table = (iptc.Table if family is Family.V4 else iptc.Table6)(name, autocommit=False)
    for chain in sorted({rule.chain for rule in rules if rule.chain.startswith(CHAIN_PREFIX)}):
        table.create_chain(chain)
    for rule in rules:
        try:
            iptc.Chain(table, rule.chain).append_rule(_build(iptc, family, rule))
        except Exception as error:
            raise KernelError(f"IPv{family} rule {rule}: {error}") from error
    try:
        table.commit()
    except iptc.IPTCError as error:
        raise KernelError(f"IPv{family} table {name}, {len(rules)} rules: {error}") from error


def _build(iptc: Any, family: Family, rule: LegacyRule) -> Any:  # noqa: ANN401  # python-iptables has no types
    built = (iptc.Rule if family is Family.V4 else iptc.Rule6)()
    if rule.protocol:
        built.protocol = rule.protocol
    if rule.destination:
        built.dst = rule.destination
    if rule.not_in_interface:
        built.in_interface = f"!{rule.not_in_interface}"
    if rule.out_interface:
        built.out_interface = rule.out_interface
    _mend_interface_masks(built.get_ip(), rule)
    for wanted in rule.matches:
        match = built.create_match(wanted.name)
        for option, value in wanted.options:
            match.set_parameter(option, value.split(" "))
    target = built.create_target(rule.target.name if rule.target else "")
    for option, value in rule.target.options if rule.target else ():
        target.set_parameter(option, value)
    return built


def _mend_interface_masks(header: Any, rule: LegacyRule) -> None:  # noqa: ANN401  # ipt_ip or ip6t_ip6
    """Compare whole names, the NUL included: python-iptables' IPv6 mask has one bit a byte."""
    for field, name in (("iniface_mask", rule.not_in_interface), ("outiface_mask", rule.out_interface)):
        mask = b"\xff" * (len(name) + 1) if name else b""
        setattr(header, field, mask.ljust(_INTERFACE_SIZE, b"\0"))


def _python_iptables() -> Any:  # noqa: ANN401  # python-iptables has no types
    """Import python-iptables without the detours that it takes by default."""
    os.environ.setdefault("XTABLES_LIBDIR", _extensions())
    ctypes.util.find_library = partial(_library, ctypes.util.find_library)
    try:
        import iptc  # noqa: PLC0415  # its import has side effects: never in the agent
    except (ImportError, FileNotFoundError) as error:  # the second where there is no modprobe
        raise KernelError(
            f"python-iptables cannot be imported ({error}): install it and kmod, or use the nft backend"
        ) from None
    return iptc


def _library(search: Callable[[str], str | None], name: str) -> str | None:
    """Return what to load for *name*: what it is called nearly everywhere, else what *search* finds.

    None for any other name: python-iptables tries a dozen of each, and finds its own beside itself.
    """
    if name not in _SONAMES:
        return None
    try:
        ctypes.CDLL(_SONAMES[name])
    except OSError:
        return search(name)
    return _SONAMES[name]


def _extensions() -> str:
    """Return the directory of iptables' extensions (libxt_*.so)."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    places = [Path("/usr", lib, "xtables") for lib in (f"lib/{multiarch}", "lib64", "lib")]
    for place in places:
        if place.is_dir():
            return str(place)
    raise KernelError(
        f"no iptables extensions in {', '.join(map(str, places))}: install iptables, or set XTABLES_LIBDIR"
    )


if __name__ == "__main__":
    main()
