"""Recording and alerting rules as data."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from daemonset.observability.words import RUNBOOKS

Json = dict[str, Any]


class Severity(StrEnum):
    """How soon somebody should look: now, today, or when there is time."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Record:
    """A series that is computed ahead; *name* is ``level:metric:operations``."""

    name: str
    expr: str

    def document(self) -> Json:
        """Return it as Prometheus reads it."""
        return {"record": self.name, "expr": self.expr}


@dataclass(frozen=True)
class Alert:
    """What somebody is told when *expr* has held for *wait*; its runbook has its name."""

    name: str
    severity: Severity
    expr: str
    wait: str
    summary: str
    description: str

    def document(self) -> Json:
        """Return it as Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.wait,
            "labels": {"severity": self.severity.value},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{RUNBOOKS}/{self.name}.md",
            },
        }


@dataclass(frozen=True)
class Group:
    """Rules that are evaluated together, in this order."""

    name: str
    rules: tuple[Record, ...] | tuple[Alert, ...] = field(default_factory=tuple)

    def document(self) -> Json:
        """Return it as Prometheus reads it."""
        return {"name": self.name, "rules": [rule.document() for rule in self.rules]}
