"""All pods of the node, as their sources say, and what was said that could not be understood."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import structlog

from nodeagent.agent.facts import Facts
from nodeagent.agent.merging import kubelets_key, merge
from nodeagent.agent.pod import Pod, Source, Wanted
from nodeagent.agent.policies import Policies
from nodeagent.agent.queue import Queue
from nodeagent.model import PodKey, PodManifest, PodName, PodRecord, Policy, RuleSet, Snapshot
from nodeagent.policy import Configuration, Resolution, opt_in


class Roster:
    """Turns snapshots into pods, and puts those that changed into *queue*."""

    def __init__(
        self,
        policies: Policies,
        queue: Queue[PodKey],
        facts: Facts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policies, self._queue, self._facts, self._clock = policies, queue, facts, clock
        self._pods: dict[PodKey, Pod] = {}
        self._said: dict[Source, Snapshot] = {}
        self.judged: Callable[[Pod, Resolution], None] = lambda _pod, _resolution: None
        """Called with each pod of the cluster whose annotations were read, and what they were understood to mean."""
        self.problems: Mapping[str, str] = {}
        """What could not be understood, by file or pod."""
        self.remembered: Mapping[PodName, Policy] = {}
        """What a former agent knew last of pods: it holds until the API server speaks of them.

        The container runtime knows annotations as they were when the pod was made.
        """

    def __iter__(self) -> Iterator[Pod]:
        return iter(list(self._pods.values()))

    def __len__(self) -> int:
        return len(self._pods)

    def get(self, key: PodKey) -> Pod | None:
        """Return the pod with this key."""
        return self._pods.get(key)

    def find(self, namespace: str, name: str) -> Pod | None:
        """Return the pod with this name, one that stays before one that goes."""
        found = [pod for pod in self._pods.values() if pod.key[:2] == (namespace, name)]
        return min(found, key=lambda pod: pod.retiring, default=None)

    @property
    def configuration(self) -> Configuration:
        """The configuration in force."""
        return self._policies.configuration

    @property
    def base(self) -> RuleSet | None:
        """What a pod without annotations is to hold; None where nothing is enforced."""
        return self._policies.wanted({}).ruleset

    def update(self, source: Source, snapshot: Snapshot, *, were_there: bool = False) -> None:
        """Take over what a source says now; pods that no source names any more retire.

        *were_there* says that new ones ran before there was an agent on this node.
        """
        self._said[source] = snapshot
        self._complain({file: problem for said in self._said.values() for file, problem in said.problems.items()})
        named = self._named()
        for key, (manifest, by) in named.items():
            pod = self._pods.get(key)
            if pod is None:
                pod = Pod(key, manifest, self._wanted(manifest, by), self._clock(), by, was_there=were_there)
                self._pods[key] = pod
            elif pod.manifest == manifest and pod.source is by and not pod.retiring:
                continue
            else:
                pod.manifest, pod.source, pod.retiring = manifest, by, False
            self._want(pod)
            self._queue.add(key)
        for key in self._pods.keys() - named.keys():
            if not self._pods[key].retiring:
                self._pods[key].retiring, self._pods[key].retired_at = True, self._clock()
                self._queue.add(key)

    def _named(self) -> dict[PodKey, tuple[PodManifest, Source]]:
        """Return all pods that a source names; whom a manifest of the directory names is the directory's."""
        empty = Snapshot({})
        own = self._said.get(Source.DIRECTORY, empty).pods
        taken = {(key.namespace, key.name): key.uid for key in own}
        found = {key: (manifest, Source.DIRECTORY) for key, manifest in own.items()}
        others = self._of_cluster().items()
        return found | {
            key: (manifest, by)
            for key, (manifest, by) in others
            if taken.get((key.namespace, key.name)) not in ("", key.uid, manifest.uid)
        }

    def _of_cluster(self) -> dict[PodKey, tuple[PodManifest, Source]]:
        """Return the pods that the API server or the container runtime names, by the kubelet's names of them."""
        empty = Snapshot({})
        api, runtime = self._said.get(Source.CLUSTER, empty), self._said.get(Source.RUNTIME, empty)
        found = {key: (manifest, Source.RUNTIME) for key, manifest in runtime.pods.items()}
        for given, manifest in api.pods.items():
            key = kubelets_key(given, manifest)
            other = runtime.pods.get(key)
            known = merge(manifest, other, is_current=runtime.is_current) if other else manifest
            found[key] = known, Source.CLUSTER
        return found

    def holder(self, pod: Pod) -> Pod | None:
        """Return another pod that lives in the network namespace where *pod* was last seen; one that goes is none."""
        others = (other for other in self._pods.values() if other is not pod and not other.retiring)
        return next((other for other in others if pod.cookie is not None and other.cookie == pod.cookie), None)

    def recall(self, records: Iterable[PodRecord]) -> Iterator[tuple[Pod, PodRecord]]:
        """Let pods of a former agent retire, those that no source names any more; yield each."""
        for record in records:
            key = PodKey(record.name.namespace, record.name.name, record.name.uid, record.netns)
            if key not in self._pods:
                manifest = PodManifest(key.name, key.namespace, key.uid, netns=key.netns or None)
                by = Source.DIRECTORY if key.netns else Source.CLUSTER
                pod = Pod(key, manifest, self._policies.wanted({}), self._clock(), by, retiring=True)
                self._pods[key] = pod
                self._queue.add(key)
                yield pod, record

    def configure(self, configuration: Configuration) -> None:
        """Let *configuration* be in force from now on."""
        self._policies = Policies(configuration)
        for pod in self._pods.values():
            self._want(pod)
            self._queue.add(pod.key)

    def hold(self, pod: Pod) -> None:
        """Take note that the runtime waits for us with it: it can be programmed from now on."""
        pod.is_held = True
        if pod.in_force_since is None:
            pod.first_seen = self._clock()

    def drop(self, pod: Pod) -> None:
        """Forget a pod that has gone."""
        self._pods.pop(pod.key, None)
        self._queue.discard(pod.key)

    def _wanted(self, manifest: PodManifest, source: Source) -> Wanted:
        opted = None if source is Source.DIRECTORY else opt_in(manifest, self.configuration)
        return self._policies.wanted(manifest.annotations, opted)

    def _want(self, pod: Pod) -> None:
        """Let the pod's annotations hold, or the last good ones; whether it is ours, the present ones say."""
        remembered = self.remembered.get(pod.name) if pod.source is Source.RUNTIME else None
        if remembered:
            pod.wanted, pod.failures = self._policies.remember(remembered), 0
            return
        before = pod.rejected
        wanted = asked = self._wanted(pod.manifest, pod.source)
        pod.rejected = wanted.resolution.rejected
        if not pod.rejected:
            pod.good = pod.manifest.annotations
        elif pod.good is not None:
            wanted = self._policies.wanted(pod.good, asked.opted)
        keeps = wanted.resolution.rejected and pod.good is not None and not self.configuration.settings.suspend
        if not keeps:
            pod.wanted, pod.failures = wanted, 0
        if pod.rejected != before:
            self._tell(pod)
        if pod.source is Source.CLUSTER:
            self.judged(pod, asked.resolution)

    def _tell(self, pod: Pod) -> None:
        log = structlog.get_logger().bind(pod=str(pod.key))
        for rejection in pod.rejected:
            self._facts.annotation_rejections[rejection.reason.value] += 1
            log.warning("annotation refused", key=rejection.key, reason=rejection.reason.value, error=rejection.message)
        opted = pod.wanted.opted
        for warning in (*(opted.warnings if opted else ()), *pod.wanted.resolution.warnings):
            log.info("annotation", warning=warning)

    def _complain(self, problems: Mapping[str, str]) -> None:
        for file, problem in problems.items():
            if self.problems.get(file) != problem:
                structlog.get_logger().error("bad manifest: its last good version stays", file=file, error=problem)
        for file in self.problems.keys() - problems.keys():
            structlog.get_logger().info("manifest is good again", file=file)
        self.problems = dict(problems)
