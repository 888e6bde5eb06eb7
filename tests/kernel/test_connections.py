"""Every connection case with real sockets in a real namespace, on both backends."""

import pytest

from nodeagent.policy import Configuration, resolve
from nodeagent.programmer.process import ChildProgrammer
from nodeagent.programmer.seam import Choice
from tests.cases import Case, load_connection_cases
from tests.kernel.conftest import Opener, Pod, dial, interface_to
from tests.lab import Topology

pytestmark = pytest.mark.kernel

CASES = load_connection_cases()


@pytest.mark.fault(21)
@pytest.mark.parametrize("case", [c for c in CASES if not c.phase], ids=lambda case: case.id)
def test_kernel_gives_the_expected_verdict(case: Case, shared_pod: Pod, shared_lab: Topology) -> None:
    assert interface_to(str(case.connection.destination)) == case.connection.interface
    shared_pod.apply(resolve(case.annotations, Configuration()).policy)
    outcome = shared_lab.client.connect(dial(case.connection))
    assert (outcome.verdict, outcome.port) == (case.verdict, case.port)
    if outcome.verdict == "intercepted" and dial(case.connection).proto == "tcp":
        assert outcome.original_destination == (str(case.connection.destination), case.connection.port)


@pytest.mark.parametrize("case", [c for c in CASES if c.phase], ids=lambda case: case.id)
def test_a_connection_older_than_the_rules_lives(
    case: Case, programmer: ChildProgrammer, lab: Topology, backend: Choice, open_to: Opener
) -> None:
    if case.tracking_before:
        lab.pod.nft("table ip users { chain c { type filter hook output priority 0; ct state established counter; }; }")
    if case.tcp_loose is not None:
        lab.pod.set_sysctls({"net/netfilter/nf_conntrack_tcp_loose": str(case.tcp_loose)})
    older = open_to(lab.client, dial(case.connection))
    assert older.echo() == "world"
    Pod(programmer, lab.pod, backend).apply(resolve(case.annotations, Configuration()).policy)
    assert older.echo() == "world"
    assert lab.client.connect(dial(case.connection)).verdict == "intercepted"
    assert older.echo() == "world"


def test_cases_are_all_there() -> None:
    assert len(CASES) == 40
    assert len([case for case in CASES if case.phase]) == 3
