"""What a store does with the ledger's changes, in memory."""

from collections.abc import Mapping

from nodeagent.ledger import Changes, Memory
from nodeagent.model import PodRecord


def apply(memory: Memory, changes: Changes, records: Mapping[int, PodRecord]) -> Memory:
    """Return *memory* after *changes*, with the records of pods that were not forgotten."""
    slots = {slot.position: slot for slot in memory.slots if slot.position not in changes.free}
    slots |= {slot.position: slot for slot in changes.slots}
    corrections = {(c.pod, c.container, c.account): c for c in (*memory.corrections, *changes.corrections)}
    series = {(s.pod, s.line): s for s in (*memory.series, *changes.series)}
    ended = {**memory.ended, **changes.ended}
    return Memory(
        slots=tuple(slots.values()),
        corrections=tuple(c for c in corrections.values() if c.pod not in changes.forgotten),
        series=tuple(s for s in series.values() if s.pod not in changes.forgotten),
        records={pod: r for pod, r in {**memory.records, **records}.items() if pod not in changes.forgotten},
        ended={pod: at for pod, at in ended.items() if at is not None and pod not in changes.forgotten},
        forgotten=(memory.forgotten | changes.forgotten) - changes.vacated - records.keys(),
        dropped_bytes=memory.dropped_bytes if changes.dropped_bytes is None else changes.dropped_bytes,
    )
