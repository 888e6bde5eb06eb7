"""Pods, their numbers, and the policies of their epochs, as rows."""

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Final

from nodeagent.model import PodRecord, Policy
from nodeagent.state.documents import identify, read_policy, read_record, write_policy, write_record
from nodeagent.state.schema import to_signed, to_unsigned

MOST_EPOCHS: Final = 64
"""Epochs kept for a pod: the first one, and the last.  A connection from one between becomes ``preexisting``."""

_MOST_KNOWN: Final = 4096

_COLLECT: Final = """
    DELETE FROM policies
    WHERE id NOT IN (SELECT policy FROM epochs UNION SELECT policy FROM pods WHERE policy NOT NULL)
"""


class PodRows:
    """Reads and writes pods; remembers under which id it wrote a policy object."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._known: dict[int, tuple[Policy, str]] = {}

    def write(self, record: PodRecord, number: int | None) -> None:
        """Insert or replace a pod; it lives if it has a number."""
        pod, policy = to_signed(record.id), self._policy_id(record.policy)
        self._db.execute(
            "INSERT OR REPLACE INTO pods (id, number, record, policy) VALUES (?, ?, ?, ?)",
            (pod, number, write_record(record, policy), policy),
        )
        kept = sorted(record.epochs)
        kept = kept if len(kept) <= MOST_EPOCHS else [kept[0], *kept[1 - MOST_EPOCHS :]]
        self._db.execute("DELETE FROM epochs WHERE pod = ?", (pod,))
        self._db.executemany(
            "INSERT INTO epochs VALUES (?, ?, ?)", [(pod, n, self._policy_id(record.epochs[n])) for n in kept]
        )

    def write_numbers(self, numbers: Mapping[int, int], forgotten: Iterable[int]) -> None:
        """Insert pods of which only the number is still taken."""
        rows = ((to_signed(pod), numbers[pod]) for pod in forgotten if pod in numbers)
        self._db.executemany("INSERT OR IGNORE INTO pods (id, number, forgotten) VALUES (?, ?, 1)", rows)

    def vacate(self, pods: Iterable[int]) -> None:
        """Take the numbers of pods away, which are remembered."""
        self._db.executemany("UPDATE pods SET number = NULL WHERE id = ?", ((to_signed(pod),) for pod in pods))

    def remove(self, pods: Iterable[int]) -> None:
        """Remove pods, and policies that nobody has any more."""
        for pod in map(to_signed, pods):
            self._db.execute("DELETE FROM epochs WHERE pod = ?", (pod,))
            self._db.execute("DELETE FROM pods WHERE id = ?", (pod,))

    def collect(self) -> None:
        """Remove policies that no pod has any more."""
        self._db.execute(_COLLECT)
        self._known.clear()

    def numbers(self) -> dict[int, int]:
        """Return the numbers that are taken, by pod."""
        rows = self._db.execute("SELECT id, number FROM pods WHERE number NOT NULL")
        return {to_unsigned(pod): number for pod, number in rows}

    def forgotten(self) -> frozenset[int]:
        """Return pods of which only the number is still taken."""
        return frozenset(to_unsigned(pod) for (pod,) in self._db.execute("SELECT id FROM pods WHERE forgotten"))

    def ended(self) -> dict[int, float]:
        """Return when pods ended, those that were not forgotten."""
        rows = self._db.execute("SELECT id, ended FROM pods WHERE ended NOT NULL AND NOT forgotten")
        return {to_unsigned(pod): at for pod, at in rows}

    def records(self) -> dict[int, PodRecord]:
        """Return the records of all pods that were not forgotten; equal policies are one object."""
        policies = {name: read_policy(text) for name, text in self._db.execute("SELECT id, document FROM policies")}
        self._known = {id(policy): (policy, name) for name, policy in policies.items()}
        epochs: dict[int, dict[int, str]] = {}
        for pod, epoch, policy in self._db.execute("SELECT pod, epoch, policy FROM epochs"):
            epochs.setdefault(pod, {})[epoch] = policy
        rows = self._db.execute("SELECT id, record FROM pods WHERE NOT forgotten ORDER BY number")
        return {to_unsigned(pod): read_record(text, policies, epochs.get(pod, {})) for pod, text in rows}

    def _policy_id(self, policy: Policy) -> str:
        known = self._known.get(id(policy))
        if known:
            return known[1]
        document = write_policy(policy)
        name = identify(document)
        self._db.execute("INSERT OR IGNORE INTO policies VALUES (?, ?)", (name, document))
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[id(policy)] = policy, name
        return name

    def forget_ids(self) -> None:
        """Take no policy for written any more: the transaction that did it failed."""
        self._known.clear()
