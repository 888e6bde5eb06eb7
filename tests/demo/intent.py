"""First act: from a Pod's annotations to rules, by the command line, and what connections make of them."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from nodeagent.decide import decide
from nodeagent.files.manifest import read_pods
from nodeagent.model import Connection, Decision, Policy, Protocol
from nodeagent.policy import Configuration, resolve
from tests.demo.stage import Row, nodeagent, say, show
from tests.lab import POD_ADDRESSES, Dial, Outcome, Topology
from tests.lab import Connection as LabConnection

MANIFEST = """\
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  annotations:
    traffic.sidecar.istio.io/excludeOutboundIPRanges: 198.51.100.0/24, 2001:db8:5::/48
    nodeagent.io/excludeOutboundPorts: "3306,7000-7100"
    nodeagent.io/excludeInterfaces: net1
    nodeagent.io/dnsCapture: "true"
status:
  podIPs: [{ip: 10.244.1.5}, {ip: "fd00:244:1::5"}]
"""

EDITED = MANIFEST.replace("198.51.100.0/24", "198.51.100.0/24, 203.0.113.0/24")


@dataclass(frozen=True)
class Step:
    """One connection of the demo, in words and as it is dialled."""

    what: str
    dial: Dial


STEPS = (
    Step("HTTPS to the outside", Dial("203.0.113.10", 443)),
    Step("the same over IPv6", Dial("2001:db8::10", 443)),
    Step("an excluded range", Dial("198.51.100.20", 443)),
    Step("an excluded IPv6 range", Dial("2001:db8:5::1", 443)),
    Step("an excluded port", Dial("203.0.113.10", 3306)),
    Step("a port in an excluded port range", Dial("203.0.113.10", 7050)),
    Step("an excluded interface (net1)", Dial("172.16.9.9", 443)),
    Step("QUIC: UDP passes the sidecar by", Dial("203.0.113.10", 443, "udp")),
    Step("DNS over UDP, captured", Dial("10.96.0.10", 53, "udp")),
    Step("DNS over TCP, captured", Dial("10.96.0.10", 53)),
    Step("a resolver on loopback, captured", Dial("127.0.0.53", 53, "udp")),
    Step("the app talking to itself", Dial("127.0.0.1", 8080)),
    Step("the pod's own address", Dial("10.244.1.5", 8080)),
    Step("the sidecar's own upstream leg", Dial("203.0.113.10", 443, uid=1337, gid=1337)),
    Step("an app that runs as the proxy's uid", Dial("203.0.113.10", 443, uid=1337)),
)


def play(lab: Topology, opened: ExitStack, scratch: Path, backend: str) -> list[Row]:
    """Show the act on *lab*; return all rows that it showed."""
    manifest = scratch / "pod.yaml"
    say("A pod in a network namespace of its own, its sidecar on port 15001, a world that answers for any address.")
    old = opened.enter_context(lab.client.open_connection(Dial("203.0.113.10", 9999)))
    say("A connection is open before there are any rules.  Then the pod is programmed from this manifest:")
    print(MANIFEST)
    program(manifest, MANIFEST, "apply", "--netns", lab.pod.path, "--backend", backend)

    rows = list(make_connections(lab, policy_of(MANIFEST)))
    rows.append(
        (
            "203.0.113.10:9999",
            "the connection older than the rules",
            "lives, direct",
            alive(old),
            "not its first packet",
        )
    )
    show(rows)

    say("Now 203.0.113.0/24 is excluded too, while a connection to it is open through the sidecar:")
    through = opened.enter_context(lab.client.open_connection(Dial("203.0.113.10", 443)))
    program(manifest, EDITED, "apply", "--netns", lab.pod.path, "--backend", backend)
    edited = [
        (
            "203.0.113.10:443",
            "opened before the edit",
            "stays with the sidecar",
            f"stays with the {through.echo()}",
            "keeps its path",
        ),
        *(row(lab, policy_of(EDITED), Step("opened after the edit", Dial("203.0.113.10", 443))),),
    ]
    show(edited)
    through.close()

    say("In sync?  And then: clear.")
    program(manifest, EDITED, "diff", "--netns", lab.pod.path, "--backend", backend)
    program(manifest, EDITED, "clear", "--netns", lab.pod.path)
    return rows + edited


def make_connections(lab: Topology, policy: Policy) -> Iterator[Row]:
    """Make each connection of the demo; yield destination, what, expected, happened, why."""
    for step in STEPS:
        yield row(lab, policy, step)


def row(lab: Topology, policy: Policy, step: Step) -> Row:
    """Dial once; return the table's row."""
    decision = decide(policy, connection(step.dial))
    outcome = lab.client.connect(step.dial)
    where = f"[{step.dial.dst}]" if ":" in step.dial.dst else step.dial.dst
    suffix = "/udp" if step.dial.proto == "udp" else ""
    why = f"{decision.reason.value} ({decision.source})"
    return f"{where}:{step.dial.port}{suffix}", step.what, expected(decision), happened(outcome), why


def connection(dial: Dial) -> Connection:
    """Return the connection that *dial* makes, as the rules see it."""
    address = ip_address(dial.dst)
    through = (
        "lo" if address.is_loopback or dial.dst in POD_ADDRESSES else "net1" if dial.dst == "172.16.9.9" else "eth0"
    )
    return Connection(address, dial.port, Protocol(dial.proto), dial.uid, dial.gid, through)


def expected(decision: Decision) -> str:
    """Return what should happen, in the words of :func:`happened`."""
    return f"intercepted at {decision.port}" if decision.port else "bypassed"


def happened(outcome: Outcome) -> str:
    """Return what did happen, as the other end told it."""
    return f"intercepted at {outcome.port}" if outcome.verdict == "intercepted" else outcome.verdict


def alive(old: LabConnection) -> str:
    """Return whether an open connection still works, and with whom."""
    who = old.echo()
    return "lives, direct" if who == "world" else f"lives, through the {who}"


def policy_of(manifest: str) -> Policy:
    """Return the policy of the manifest's Pod under the default configuration."""
    (pod,) = read_pods(manifest, "demo")
    return resolve(pod.annotations, Configuration()).policy


def program(manifest: Path, text: str, command: str, *arguments: str) -> None:
    """Write the manifest, and run a command on it."""
    manifest.write_text(text, encoding="utf-8")
    nodeagent(command, "-f", str(manifest), *arguments, shown=f"{command} -f pod.yaml {' '.join(arguments)}")
