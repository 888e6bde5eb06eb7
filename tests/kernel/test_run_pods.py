"""``nodeagent run`` on a directory: pods come, change and go, and their rules follow."""

from pathlib import Path

import pytest

from nodeagent.programmer.seam import Choice
from tests.lab import Dial, Netns, Topology, istio_like, legacy_save, nft_save
from tests.lab.agent import Manifest, RunningAgent

pytestmark = pytest.mark.kernel

FAR = Dial("203.0.113.10", 443)
FAR6 = Dial("2001:db8::10", 443)


def test_a_pod_is_programmed_follows_its_annotations_and_is_left_as_it_was(
    agent: RunningAgent, lab: Topology, backend: Choice
) -> None:
    agent.configure(f"backend: {backend.value}\n")
    web = Manifest("web", lab.pod.path)
    agent.add(web)
    first = agent.settle()
    assert {lab.client.connect(to).verdict for to in (FAR, FAR6)} == {"intercepted"}
    agent.add(Manifest("web", lab.pod.path, {"excludeOutboundPorts": "443"}))
    second = agent.settle(after=first)
    assert {lab.client.connect(to).verdict for to in (FAR, FAR6)} == {"bypassed"}
    agent.add(web)
    agent.settle(after=second)
    assert lab.client.connect(FAR).verdict == "intercepted"
    agent.remove("web")
    agent.wait(lambda: not agent.pod("web"))
    assert lab.client.connect(FAR).verdict == "bypassed"
    assert nft_save(lab.pod) == {}
    assert not any("-A " in text for text in legacy_save(lab.pod).values())


def test_a_pod_that_goes_is_drained(agent: RunningAgent, lab: Topology) -> None:
    agent.add(Manifest("web", lab.pod.path))
    agent.settle()
    with lab.client.open_connection(FAR) as through:
        agent.remove("web")
        agent.wait(lambda: "draining" in agent.pod("web").get("detail", ""))
        assert lab.client.connect(FAR).verdict == "bypassed"
        assert through.echo() == "sidecar"
    agent.wait(lambda: not agent.pod("web"))
    assert nft_save(lab.pod) == {}


def test_a_pod_whose_netns_comes_later_and_goes_first(agent: RunningAgent, tmp_path: Path) -> None:
    link = tmp_path / "netns"
    agent.configure("resync: {seconds: 1}\n")
    agent.add(Manifest("web", str(link)))
    agent.wait(lambda: "cannot open" in agent.pod("web").get("detail", ""))
    with Netns() as pod:
        link.symlink_to(pod.path)
        agent.settle()
        assert "nodeagent" in pod.run(["nft", "list", "ruleset"])
    agent.wait(lambda: agent.pod("web")["state"] == "pending")
    agent.remove("web")
    agent.wait(lambda: not agent.pod("web"))


@pytest.mark.parametrize(
    ("manifest", "state", "detail"),
    [
        pytest.param(Manifest("web", host_network=True), "skipped", "host's network", id="hostNetwork is skipped"),
        pytest.param(Manifest("web"), "pending", "nodeagent.io/netns", id="no netns: it waits for one"),
        pytest.param(Manifest("web", "/proc/1/ns/net"), "refused", "host's", id="the host's netns is refused"),
        pytest.param(Manifest("web", "/dev/null"), "pending", "not a network namespace", id="not a netns"),
    ],
)
def test_what_is_not_programmed_says_why(agent: RunningAgent, manifest: Manifest, state: str, detail: str) -> None:
    agent.add(manifest)
    agent.wait(lambda: agent.pod("web").get("state") == state and detail in agent.pod("web")["detail"])


def test_observe_mode_programs_nothing_and_takes_our_rules_away(agent: RunningAgent, lab: Topology) -> None:
    agent.add(Manifest("web", lab.pod.path))
    agent.settle()
    agent.add(Manifest("web", lab.pod.path, {"intercept": "observe"}))
    agent.wait(lambda: agent.pod("web")["state"] == "observed")
    assert lab.client.connect(FAR).verdict == "bypassed"
    agent.add(Manifest("web", lab.pod.path, {"intercept": "disabled"}))
    agent.wait(lambda: agent.pod("web")["state"] == "skipped")
    agent.add(Manifest("web", lab.pod.path))
    agent.settle()
    assert lab.client.connect(FAR).verdict == "intercepted"


def test_another_tools_pod_is_observed_and_never_touched(agent: RunningAgent, pod: Netns) -> None:
    istio_like(pod, "nft")
    before = nft_save(pod)
    agent.add(Manifest("web", pod.path))
    agent.wait(lambda: agent.pod("web").get("state") == "observed")
    assert "ISTIO_OUTPUT" in agent.pod("web")["detail"]
    assert nft_save(pod) == before
    pod.run(["nft", "flush", "ruleset"])
    agent.settle()


@pytest.mark.parametrize("refused", ["99999", "443;reboot"])
def test_a_refused_annotation_leaves_a_running_pod_as_it_is(agent: RunningAgent, lab: Topology, refused: str) -> None:
    agent.add(Manifest("web", lab.pod.path, {"excludeOutboundPorts": "443"}))
    epoch = agent.settle()
    agent.add(Manifest("web", lab.pod.path, {"excludeOutboundPorts": refused}))
    agent.wait(lambda: agent.pod("web")["rejected"])
    assert agent.pod("web")["epoch"] == epoch
    assert lab.client.connect(FAR).verdict == "bypassed"
    assert lab.client.connect(Dial("203.0.113.10", 444)).verdict == "intercepted"
    lab.pod.run(["nft", "flush", "ruleset"])
    agent.wait(lambda: agent.pod("web")["repairs"] == 1)
    assert lab.client.connect(FAR).verdict == "bypassed"


def test_a_refused_annotation_of_a_new_pod_leaves_it_with_the_configuration(agent: RunningAgent, lab: Topology) -> None:
    agent.add(Manifest("web", lab.pod.path, {"excludeOutboundPorts": "99999"}))
    agent.settle()
    assert agent.pod("web")["rejected"]
    assert lab.client.connect(FAR).verdict == "intercepted"


def test_a_bad_manifest_keeps_the_last_good_one_and_says_so(agent: RunningAgent, lab: Topology) -> None:
    agent.add(Manifest("web", lab.pod.path))
    epoch = agent.settle()
    agent.write("web.json", '{"kind": "Pod", "metadata": {"name": ')
    agent.wait(lambda: agent.events("bad manifest: its last good version stays"))
    assert "web.json" in agent.get("/readyz", inner=False)[1]
    assert agent.pod("web")["epoch"] == epoch
    agent.add(Manifest("web", lab.pod.path, {"excludeOutboundPorts": "443"}))
    agent.settle(after=epoch)
    assert "web.json" not in agent.get("/readyz", inner=False)[1]


def test_a_file_that_is_being_written_is_not_looked_at(agent: RunningAgent, lab: Topology) -> None:
    whole = Manifest("web", lab.pod.path, {"excludeOutboundPorts": "443"}).text()
    with (agent.pods_dir / "web.json").open("w", encoding="utf-8") as file:
        for part in (whole[:40], whole[40:-20]):
            file.write(part)
            file.flush()
            agent.write("other.json", Manifest("other", host_network=True).text())
            agent.wait(lambda: agent.pod("other"))
            agent.remove("other")
            agent.wait(lambda: not agent.pod("other"))
        assert not agent.pod("web")
        file.write(whole[-20:])
    agent.settle()
    assert not agent.events("bad manifest: its last good version stays")


def test_one_pod_in_two_files_is_taken_once(agent: RunningAgent) -> None:
    agent.write("a.json", Manifest("web", host_network=True).text())
    agent.write("b.json", Manifest("web").text())
    agent.wait(lambda: "is in a.json already" in agent.get("/readyz", inner=False)[1])
    agent.wait(lambda: agent.pod("web")["state"] == "skipped")


@pytest.mark.parametrize("mode", ["enabled", "observe"])
def test_of_two_pods_in_one_netns_the_first_stays_as_it_is(agent: RunningAgent, pod: Netns, mode: str) -> None:
    """A manifest that was copied, and not all of it changed: each would put the other's rules right, for ever."""
    agent.add(Manifest("web", pod.path))
    agent.settle()
    before = nft_save(pod)
    agent.add(Manifest("copy", pod.path, {"intercept": mode, "excludeOutboundPorts": "443"}))
    agent.wait(lambda: "network namespace of default/web" in (agent.pod("copy").get("detail") or ""))
    agent.wait(lambda: agent.metrics()['nodeagent_reconciliations_total{result="refused"}'] > 1)
    assert (agent.pod("copy")["state"], agent.pod("web")["state"]) == ("refused", "intercepted")
    assert agent.pod("web")["repairs"] == 0
    assert nft_save(pod) == before
    agent.remove("web")
    agent.wait(lambda: agent.pod("copy")["state"] == ("observed" if mode == "observe" else "intercepted"))


def test_the_directory_may_go_and_come_back(agent: RunningAgent, pod: Netns) -> None:
    agent.add(Manifest("web", pod.path))
    epoch = agent.settle()
    away = agent.pods_dir.with_name("away")
    agent.pods_dir.rename(away)
    agent.wait(lambda: "cannot be listed" in agent.get("/readyz", inner=False)[1])
    assert agent.pod("web")["in_sync"]
    away.rename(agent.pods_dir)
    agent.wait(lambda: "cannot be listed" not in agent.get("/readyz", inner=False)[1])
    agent.add(Manifest("web", pod.path, {"excludeOutboundPorts": "443"}))
    agent.settle(after=epoch)


def test_the_configuration_is_reloaded_and_a_bad_edit_keeps_the_last_good_one(
    agent: RunningAgent, lab: Topology
) -> None:
    agent.add(Manifest("web", lab.pod.path))
    first = agent.settle()
    agent.configure('defaults: {excludeOutboundPorts: "443"}\n')
    second = agent.settle(after=first)
    assert lab.client.connect(FAR).verdict == "bypassed"
    agent.configure("defaults: {excludeOutboundPorts: nonsense}\n")
    agent.wait(lambda: agent.ask("/api/v1/config")["problem"])
    assert "configuration" in agent.get("/readyz", inner=False)[1]
    assert agent.pod("web")["epoch"] == second
    agent.configure("")
    agent.settle(after=second)
    assert agent.ask("/api/v1/config")["problem"] is None
    assert lab.client.connect(FAR).verdict == "intercepted"
