"""The same client, against a real kube-apiserver and etcd: what the fake promises, and what it cannot."""

import asyncio
import json
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nodeagent.kube import events, pacing
from nodeagent.kube.access import load_credentials
from nodeagent.kube.client import Client, DeniedError, Patience
from nodeagent.kube.events import Events, Kind
from nodeagent.kube.watch import PodWatch, Rhythm
from nodeagent.model import Container, PodKey
from nodeagent.policy import Keys, Resolution, resolve
from tests.kube.control_plane import ROLE, SERVER, ControlPlane, Pods
from tests.kube.scene import ANNOTATION, USUAL, connected, names, pod, seen, until, watching

pytestmark = pytest.mark.cluster

NOTICES = Patience(keepalive=1, probe=1)
SHORT = Rhythm(shortest=6, longest=8)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "FIRST", 0.1)
    monkeypatch.setattr(pacing, "LONGEST", 2.0)


@dataclass
class Scene:
    """A node of its own on the one API server, watched."""

    node: str
    pods: Pods
    agent: Client
    watch: PodWatch

    async def create(self, name: str, **fields: object) -> str:
        """Create a pod on this node; return the UID that it was given."""
        found = await self.pods.create({**pod(name, node=self.node), **fields})
        return str(found["metadata"]["uid"])


@asynccontextmanager
async def scene_on(plane: ControlPlane, patience: Patience = NOTICES, rhythm: Rhythm = USUAL) -> AsyncIterator[Scene]:
    node = f"node-{secrets.token_hex(4)}"
    token = await plane.agent_token()
    async with (
        connected(plane.admin) as admin,
        connected(plane.credentials(token), patience) as agent,
        watching(agent, node, rhythm) as watch,
    ):
        yield Scene(node, Pods(admin), agent, watch)


def is_list(entry: dict[str, Any]) -> bool:
    """Say whether an entry of the audit log is about a list, be it a stream."""
    return entry["verb"] == "list" or "sendInitialEvents" in entry["requestURI"]


def unique() -> str:
    return f"p-{secrets.token_hex(4)}"


def test_pods_come_change_and_go(plane: ControlPlane) -> None:
    async def scene() -> None:
        one, two = unique(), unique()
        async with scene_on(plane) as on:
            uid = await on.create(one)
            await on.create(two)
            found = await seen(on.watch, lambda pods: set(pods) == {one, two})
            assert found[one].uid == uid
            await on.pods.patch(one, {"metadata": {"annotations": {ANNOTATION: "25"}}})
            await seen(on.watch, lambda pods: pods[one].annotations[ANNOTATION] == "25")
            await on.pods.patch(one, {"metadata": {"annotations": None}})
            await seen(on.watch, lambda pods: not pods[one].annotations)
            status = {"phase": "Running", "podIPs": [{"ip": "10.1.2.3"}, {"ip": "fd00::3"}], "podIP": "10.1.2.3"}
            await on.pods.patch(one, {"status": status}, "/status")
            found = await seen(on.watch, lambda pods: pods[one].pod_ips)
            assert [str(address) for address in found[one].pod_ips] == ["10.1.2.3", "fd00::3"]
            await on.pods.delete(one)
            await names(on.watch, two)
            again = await on.create(one)
            found = await seen(on.watch, lambda pods: set(pods) == {one, two})
            assert found[one].uid == again != uid

    plane.run(scene)


def test_what_is_kept_of_a_pod_that_has_everything(plane: ControlPlane) -> None:
    async def scene() -> None:
        name = unique()
        spec = {
            "securityContext": {"runAsUser": 1000, "runAsGroup": 1001},
            "restartPolicy": "Never",
            "initContainers": [
                {"name": "setup", "image": "none"},
                {
                    "name": "istio-proxy",
                    "image": "none",
                    "restartPolicy": "Always",
                    "securityContext": {"runAsUser": 1337, "runAsGroup": 1337},
                },
            ],
            "containers": [{"name": "app", "image": "none"}],
        }
        state = {"terminated": {"exitCode": 0}}
        statuses = [
            {
                "name": "app",
                "containerID": "containerd://abc",
                "ready": True,
                "restartCount": 0,
                "image": "",
                "imageID": "",
            }
        ]
        async with scene_on(plane) as on:
            await on.create(name, spec={**spec, "nodeName": on.node})
            await on.pods.patch(name, {"status": {"phase": "Running", "containerStatuses": statuses}}, "/status")
            found = (await seen(on.watch, lambda pods: pods[name].containers if name in pods else None))[name]
            assert found.containers == {"abc": "app"}
            assert found.running == (Container("istio-proxy", 1337, 1337), Container("app", 1000, 1001))
            await on.pods.patch(name, {"status": {"containerStatuses": [{**statuses[0], "state": state}]}}, "/status")
            assert (await seen(on.watch, lambda pods: pods[name].is_over))[name].annotations == {}

    plane.run(scene)


def test_pods_of_other_nodes_are_nobodys_business_here(plane: ControlPlane) -> None:
    async def scene() -> None:
        name = unique()
        async with scene_on(plane) as on, scene_on(plane) as other:
            await on.create(name)
            await names(on.watch, name)
            await other.create(unique())
            await seen(other.watch, lambda pods: len(pods) == 1)
            assert len(on.watch.snapshot.pods if on.watch.snapshot else ()) == 1

    plane.run(scene)


@pytest.mark.fault(6)
def test_row_6_a_server_that_is_away_changes_nothing_and_is_found_again(plane: ControlPlane) -> None:
    async def scene() -> None:
        name, later = unique(), unique()
        async with scene_on(plane) as on:
            await on.create(name)
            await names(on.watch, name)
            before = on.watch.snapshot
            await asyncio.to_thread(plane.stop, "kube-apiserver")
            await until(lambda: on.watch._backoff.failures > 3)
            assert on.watch.snapshot == before
            assert "cannot be reached" in (on.watch.problem or "")
            await asyncio.to_thread(plane.start, "kube-apiserver")
            await until(lambda: on.watch.problem is None)
            await on.create(later)
            await names(on.watch, name, later)

    plane.run(scene)


@pytest.mark.fault(8)
def test_row_8_a_server_that_has_forgotten_is_asked_for_a_list(plane: ControlPlane) -> None:
    async def scene() -> None:
        stays, goes, comes = unique(), unique(), unique()
        async with scene_on(plane) as on:
            await on.create(stays)
            await on.create(goes)
            before = await seen(on.watch, lambda pods: set(pods) == {stays, goes})
            for _past in range(10):  # what the server does not know after its restart
                await plane.agent_token()
            await asyncio.to_thread(plane.stop, "kube-apiserver")
            await asyncio.to_thread(plane.compact)
            await asyncio.to_thread(plane.start, "kube-apiserver")
            await until(lambda: sum(map(is_list, plane.audit(on.node))) > 1)
            await on.pods.delete(goes)
            await on.create(comes)
            after = await seen(on.watch, lambda pods: set(pods) == {stays, comes})
            assert after[stays] is before[stays]
            assert on.watch.problem is None

    plane.run(scene)


def test_a_server_that_streams_no_lists_is_asked_for_a_plain_one(plane: ControlPlane) -> None:
    async def scene() -> None:
        name, later = unique(), unique()
        async with scene_on(plane) as on:
            await on.create(name)
            await names(on.watch, name)
            on.watch.select(Keys(frozenset({"mesh"}), frozenset()))
            await asyncio.to_thread(plane.stop, "kube-apiserver")
            await asyncio.to_thread(plane.start, "kube-apiserver", "--feature-gates=WatchList=false")
            on.watch.select(Keys(frozenset({"mesh", "tier"}), frozenset()))
            await until(lambda: any(entry["verb"] == "list" for entry in plane.audit(on.node)))
            await on.create(later)
            await names(on.watch, name, later)
            assert not on.watch._is_streaming
        await asyncio.to_thread(plane.stop, "kube-apiserver")
        await asyncio.to_thread(plane.start, "kube-apiserver")

    plane.run(scene)


@pytest.mark.fault(9)
def test_row_9_packets_that_vanish_are_noticed_within_the_keepalives(plane: ControlPlane) -> None:
    async def scene() -> None:
        name, later = unique(), unique()
        async with scene_on(plane) as on:
            await on.create(name)
            await names(on.watch, name)
            rules = "tcp dport 6443 drop; tcp sport 6443 drop"
            plane.netns.nft(f"table inet silence {{ chain c {{ type filter hook input priority 0; {rules}; }}; }}")
            try:
                await until(lambda: on.watch.problem)
                assert len(on.watch.snapshot.pods if on.watch.snapshot else ()) == 1
            finally:
                plane.netns.nft("delete table inet silence")
            await until(lambda: on.watch.problem is None)
            await on.create(later)
            await names(on.watch, name, later)

    plane.run(scene)


@pytest.mark.fault(9)
def test_row_9_a_server_that_hangs_behind_a_living_socket_is_noticed(plane: ControlPlane) -> None:
    """Its kernel answers TCP's questions; only its silence gives it away."""

    async def scene() -> None:
        name, later = unique(), unique()
        async with scene_on(plane, rhythm=Rhythm(silence=3)) as on:
            on.watch._has_bookmarks = True
            await on.create(name)
            await names(on.watch, name)
            await asyncio.to_thread(plane.freeze, "kube-apiserver")
            try:
                await until(lambda: "said nothing" in (on.watch.problem or ""))
            finally:
                await asyncio.to_thread(plane.thaw, "kube-apiserver")
            await on.create(later)
            await names(on.watch, name, later)

    plane.run(scene)


def test_watches_end_in_time_and_go_on_without_a_list(plane: ControlPlane) -> None:
    async def scene() -> None:
        first, second = unique(), unique()
        async with scene_on(plane, rhythm=SHORT) as on:
            await on.create(first)
            await names(on.watch, first)
            await until(lambda: len(plane.audit(on.node)) > 1)
            await on.create(second)
            await names(on.watch, first, second)
            assert [is_list(entry) for entry in plane.audit(on.node)][:2] == [True, False]
            assert on.watch.problem is None

    plane.run(scene)


def test_a_kubeconfig_is_read_by_the_kubernetes_client(plane: ControlPlane, tmp_path: Path) -> None:
    async def scene() -> None:
        token = await plane.agent_token()
        path = tmp_path / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {
                            "name": "c",
                            "cluster": {"server": SERVER, "certificate-authority": f"{plane.directory}/apiserver.crt"},
                        }
                    ],
                    "users": [{"name": "u", "user": {"token": token}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        async with Client(lambda: load_credentials(str(path))) as client, watching(client) as watch:
            await until(lambda: watch.snapshot is not None)

    plane.run(scene)


@pytest.mark.parametrize("verb", ["list", "watch"])
def test_without_the_right_to(verb: str, plane: ControlPlane) -> None:
    """Each verb of the role is needed (`list` where lists are no streams): the agent says which one it lacks."""

    async def scene() -> None:
        verbs = [other for other in ("list", "watch") if other != verb]
        token = await plane.agent_token({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]})
        async with connected(plane.credentials(token)) as client, watching(client) as watch:
            watch._is_streaming = verb == "watch"
            await until(lambda: f'cannot {verb} resource "pods"' in (watch.problem or ""))

    plane.run(scene)


@pytest.mark.parametrize("verb", ["create", "patch"])
def test_an_event_without_the_right_to(verb: str, plane: ControlPlane) -> None:
    async def scene() -> None:
        verbs = [other for other in ("create", "patch") if other != verb]
        rules = [{"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": verbs}]
        token = await plane.agent_token({"rules": rules})
        async with connected(plane.credentials(token)) as client:
            path = "/apis/events.k8s.io/v1/namespaces/default/events"
            requests = {
                "create": lambda: client.request("POST", path, body={"metadata": {"name": "x"}}),
                "patch": lambda: client.request("PATCH", f"{path}/x", body={}, kind="merge-patch+json"),
            }
            with pytest.raises(DeniedError, match=f"cannot {verb} resource"):
                await requests[verb]()

    plane.run(scene)


def test_nothing_but_what_the_role_allows_is_asked_for(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PERIOD", 0.2)

    async def scene() -> None:
        async with scene_on(plane) as on:
            key = PodKey("default", unique(), secrets.token_hex(), "")
            await report_twice(Events(on.agent, on.node), key, resolve({ANNOTATION: "x"}))

    plane.run(scene)
    asked = {
        (entry["objectRef"]["resource"], entry["verb"])
        for entry in plane.audit()
        if entry["user"]["username"].startswith("system:serviceaccount:default:agent-")
    }
    allowed = {(resource, verb) for rule in ROLE["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert {("pods", "watch"), ("events", "create"), ("events", "patch")} <= asked <= allowed


def test_an_event_says_which_entry_is_wrong_and_what_is_allowed(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PERIOD", 0.2)

    async def scene() -> None:
        name = unique()
        async with scene_on(plane) as on:
            await on.create(name, metadata={"name": name, "annotations": {ANNOTATION: "25,99999"}})
            found = await seen(on.watch, lambda pods: name in pods)
            key = PodKey.of(found[name])
            for _agent in range(2):  # the second one finds what the first one said
                await report_twice(Events(on.agent, on.node), key, resolve(found[name].annotations))
            path = "/apis/events.k8s.io/v1/namespaces/default/events"
            async with connected(plane.admin) as admin:
                every = json.loads(await admin.request("GET", path))["items"]
            (event,) = [item for item in every if item["regarding"]["name"] == name]
            assert "entry 2, '99999'" in event["note"]
            assert (event["reason"], event["type"]) == ("AnnotationRefused", "Warning")
            assert event["regarding"]["uid"] == key.uid
            assert event["series"]["count"] >= 2

    plane.run(scene)


async def report_twice(told: Events, key: PodKey, resolution: Resolution) -> None:
    task = asyncio.create_task(told.run())
    told.judge(key, resolution)
    await until(lambda: told._topics[key, Kind.ANNOTATION_REFUSED].sent)
    told.judge(key, resolution)
    await until(lambda: told._topics[key, Kind.ANNOTATION_REFUSED].count > 1)
    task.cancel()


@pytest.mark.fault(8)
def test_row_8_etcd_that_is_killed_is_waited_for(plane: ControlPlane) -> None:
    async def scene() -> None:
        name, later = unique(), unique()
        async with scene_on(plane) as on:
            await on.create(name)
            await names(on.watch, name)
            await asyncio.to_thread(plane.stop, "etcd", signal.SIGKILL)
            await asyncio.to_thread(plane.start, "etcd")
            await on.create(later)
            await names(on.watch, name, later)

    plane.run(scene)
