"""What happened to a flow, and why: the kernel gives the verdict, ``decide()`` the reason.

The first line that holds gives the reason:

1. the sidecar sent it: ``proxy``, whatever kind of slot;
2. an overflow slot: ``overflow``; a folded one: the reason whose number it holds;
3. it was intercepted: what the policy of its epoch says, ``dns_capture`` or ``included``; where
   that policy would have let it go, or is unknown, ``dns_capture`` for DNS under DNS capture,
   else ``included``.  The sidecar saw it, so it is no leak;
4. it bypassed the sidecar (or was sent to a third place by somebody's DNAT), and so the policy
   says: that policy's reason; ``loopback`` is no egress, and left out.  The proxy's uid or gid
   counts for this unless the socket belongs to a container that we know and that is no sidecar;
5. it bypassed, and the policy intercepts it:

   a. nothing of ours was in force when it began (observe mode), and no other tool redirects:
      ``observed``; also what was intercepted until we ourselves let it go;
   b. it had the proxy's uid or gid (4 did not let that count): ``impersonated_proxy``, whenever
      it began;
   c. intercepted once, then direct: ``conntrack_lost``, whenever it began;
   d. nobody counted yet when it began: ``preexisting``, whatever epoch the slot says; but ``before_rules``
      where the pod is known to have started before its first rules, and those have not changed since;
   e. another tool redirects: ``rules_missing``, because we know no epoch of its rules;
   f. it began in epoch 0, or in 1, on the way to the first rules: ``before_rules``;
   g. the policy of its epoch is unknown: ``preexisting``;
   h. ``rules_missing``.

The policy of an odd epoch is that of either neighbour: the older one first, and only where both
disagree with the kernel is there a leak, so that a live edit raises none.  Before the first
rules the policy is that of the first rules; where the epoch's policy is unknown, the current one
stands in for it in 3 and 4.  Whether it was in force is the epoch's, too: what began while we only
observed does not leak because we enforce today.
"""

from typing import Final, NamedTuple

from nodeagent.decide import decide
from nodeagent.ledger.reasons import reason_of
from nodeagent.model import (
    DNS_PORT,
    Connection,
    FlowClass,
    FlowFlags,
    FlowKey,
    FlowKind,
    FlowOwner,
    Mode,
    PodRecord,
    Policy,
    Protocol,
    Reason,
    Verdict,
)

VERDICTS: Final = {
    FlowClass.INTERCEPTED: Verdict.INTERCEPTED,
    FlowClass.BYPASSED: Verdict.BYPASSED,
    FlowClass.PROXY: Verdict.PROXY,
    FlowClass.TRANSLATED: Verdict.BYPASSED,
}
"""What the kernel's class means: whoever translated it, it did not reach the sidecar."""

_PROTOCOLS: Final = {6: Protocol.TCP, 17: Protocol.UDP}
_LOOPBACK_IFINDEX: Final = 1  # in every namespace: net/core/dev.c gives it out first, and never again
_FIRST_EPOCH: Final = 2


class Judgement(NamedTuple):
    """What happened, and why."""

    verdict: Verdict
    reason: Reason


class _Policies(NamedTuple):
    """Policies either of which may have decided; ``known`` unless one is a stand-in; ``enforced`` if all were."""

    items: tuple[Policy, ...]
    known: bool
    enforced: bool


def judge(key: FlowKey, record: PodRecord) -> Judgement | None:
    """Return what happened to the flows of *key* in the pod of *record*; None for loopback."""
    verdict = VERDICTS[key.flow_class]
    if verdict is Verdict.PROXY:
        return Judgement(verdict, Reason.PROXY)
    if key.kind is FlowKind.OVERFLOW:
        return Judgement(verdict, Reason.OVERFLOW)
    if key.kind is FlowKind.FOLDED:
        return Judgement(verdict, reason_of(key.port))
    if verdict is Verdict.INTERCEPTED:
        return Judgement(verdict, _why_intercepted(key, record))
    reason = _why_bypassed(key, record)
    return None if reason is Reason.LOOPBACK else Judgement(verdict, reason)


def _why_intercepted(key: FlowKey, record: PodRecord) -> Reason:
    policies = _policies(key.epoch, record).items
    for policy in policies:
        decision = decide(policy, _connection(key, record, policy))
        if decision.verdict is Verdict.INTERCEPTED:
            return decision.reason
    captured = key.port == DNS_PORT and key.protocol in _PROTOCOLS and any(policy.dns_capture for policy in policies)
    return Reason.DNS_CAPTURE if captured else Reason.INCLUDED


def _why_bypassed(key: FlowKey, record: PodRecord) -> Reason:
    policies = _policies(key.epoch, record)
    for policy in policies.items:
        decision = decide(policy, _connection(key, record, policy))
        if decision.verdict is Verdict.BYPASSED:
            return decision.reason
    return _why_leaked(key, record, policies)


def _why_leaked(key: FlowKey, record: PodRecord, policies: _Policies) -> Reason:
    """Lines 5a to 5h, in their order."""
    let_go = not record.enforced and FlowFlags.ESCAPED in key.flags
    lines = (
        ((let_go or not policies.enforced) and not record.redirected_by_other, Reason.OBSERVED),
        (_is_impostor(key, record), Reason.IMPERSONATED_PROXY),
        (FlowFlags.ESCAPED in key.flags, Reason.CONNTRACK_LOST),
        (FlowFlags.UNSEEN in key.flags, _why_unseen(key, record)),
        (not policies.enforced, Reason.RULES_MISSING),
        (key.epoch < _FIRST_EPOCH, Reason.BEFORE_RULES),
        (not policies.known, Reason.PREEXISTING),
    )
    return next((reason for holds, reason in lines if holds), Reason.RULES_MISSING)


def _why_unseen(key: FlowKey, record: PodRecord) -> Reason:
    is_older = record.late and key.epoch <= _FIRST_EPOCH
    return Reason.BEFORE_RULES if is_older else Reason.PREEXISTING


def _policies(epoch: int, record: PodRecord) -> _Policies:
    first = min(record.epochs, default=_FIRST_EPOCH)
    before = epoch < _FIRST_EPOCH
    wanted = (first,) if before else (epoch - 1, epoch + 1) if epoch % 2 else (epoch,)
    found = tuple(record.epochs[number] for number in wanted if number in record.epochs)
    known = len(found) == len(wanted)
    enforced = all(policy.mode is Mode.ENFORCE for policy in found) and (known or record.enforced)
    return _Policies(found or (record.policy,), known or before, enforced)


def _connection(key: FlowKey, record: PodRecord, policy: Policy) -> Connection:
    """Return what nat/OUTPUT saw; the kernel has compared the owner, so any of the proxy's ids will do."""
    owner = FlowOwner.NONE if _is_impostor(key, record) else key.owner
    return Connection(
        destination=key.destination,
        port=key.port,
        protocol=_PROTOCOLS.get(key.protocol, Protocol.OTHER),
        uid=policy.proxy_uids[0] if FlowOwner.UID in owner and policy.proxy_uids else None,
        gid=policy.proxy_gids[0] if FlowOwner.GID in owner and policy.proxy_gids else None,
        interface="lo" if key.ifindex == _LOOPBACK_IFINDEX else record.interfaces.get(key.ifindex, ""),
    )


def _is_impostor(key: FlowKey, record: PodRecord) -> bool:
    """Say whether a container that is no sidecar uses the proxy's ids; one unknown so far may be a new sidecar."""
    claims = bool(key.owner & (FlowOwner.UID | FlowOwner.GID))
    return claims and key.container in record.containers and key.container not in record.sidecars
