"""What may stand in the chart's values: JSON Schema, of which Helm says what is wrong before anything is changed.

The part below ``config`` is the agent's own (:mod:`nodeagent.policy.settings`), so that the two cannot differ.  Refuses
unknown keys everywhere: a misspelt one would be silent for ever.
"""

import json
from pathlib import Path
from typing import Any, Final

import msgspec

from nodeagent.policy.dialects import DIALECTS
from nodeagent.policy.settings import Settings

CHART: Final = Path(__file__).parents[1] / "chart"

Json = dict[str, Any]

_TEXT: Final[Json] = {"type": "string"}
_FLAG: Final[Json] = {"type": "boolean"}
_OBJECT: Final[Json] = {"type": "object"}
_LIST: Final[Json] = {"type": "array"}
_WORDS: Final[Json] = {"type": "object", "additionalProperties": _TEXT}
_NAME: Final[Json] = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"}
_PATH: Final[Json] = {"type": "string", "pattern": "^/[^/]"}
_HIGHEST_PRIORITY: Final = 1_000_000_000  # higher ones are the system's own


def write_schema() -> None:
    """Write the schema to where Helm looks for it."""
    (CHART / "values.schema.json").write_text(rendered(), encoding="utf-8")


def rendered() -> str:
    """Return the schema as it is on disk."""
    return json.dumps(values_schema(), indent=2) + "\n"


def values_schema() -> Json:
    """Return the schema of all values."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "nodeagent's values; made from daemonset/packaging/schema.py by `make manifests`",
        **_mapping(
            image=_mapping(
                repository={"type": "string", "minLength": 1},
                tag={"type": "string", "pattern": r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$"},
                digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
                pullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
            ),
            imagePullSecrets={"type": "array", "items": _mapping(name=_NAME)},
            config=configuration_schema(),
            namespace=_mapping(create=_FLAG),
            serviceAccount=_mapping(annotations=_WORDS),
            priorityClass=_mapping(
                create=_FLAG,
                name=_NAME,
                value={"type": "integer", "minimum": -_HIGHEST_PRIORITY, "maximum": _HIGHEST_PRIORITY},
            ),
            updateStrategy=_mapping(maxUnavailable=_count_or_share()),
            nodeSelector=_WORDS,
            tolerations={"type": "array", "items": _OBJECT},
            affinity=_OBJECT,
            podAnnotations=_WORDS,
            podLabels=_WORDS,
            logLevel={"enum": ["debug", "info", "warning"]},
            agent=_mapping(resources=_OBJECT),
            programmer=_mapping(
                resources=_OBJECT,
                appArmorProfile={"enum": ["Unconfined", "RuntimeDefault", ""]},
                extraCapabilities={"type": "array", "items": {"type": "string", "pattern": "^[A-Z_]+$"}},
                seLinuxOptions=_WORDS,
            ),
            paths=_mapping(state=_PATH, cgroup=_PATH, bpffs=_PATH, netns=_PATH, nri=_PATH),
            networkPolicy=_mapping(
                enabled=_FLAG,
                metricsFrom={"type": "array", "items": _OBJECT},
                apiServer={"type": "array", "items": {"type": "string", "pattern": "^[0-9a-fA-F:.]+/[0-9]{1,3}$"}},
                apiServerPorts={"type": "array", "minItems": 1, "items": _port()},
            ),
            monitoring=_monitoring(),
            uninstall=_mapping(enabled=_FLAG, now=_FLAG),
            **{"global": _OBJECT},  # what a chart above this one hands down to all
        ),
    }


def _monitoring() -> Json:
    interval = {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"}
    return _mapping(
        podMonitor=_mapping(enabled=_FLAG, interval=interval, labels=_WORDS),
        prometheusRule=_mapping(enabled=_FLAG, labels=_WORDS),
        dashboards=_mapping(enabled=_FLAG, labels=_WORDS, annotations=_WORDS),
    )


def configuration_schema() -> Json:
    """Return the schema of the cluster configuration, as it may be in a DaemonSet."""
    schema = msgspec.json.schema(Settings)
    found: Json = _inlined(schema, schema["$defs"])
    found["properties"]["dialects"]["items"] = {"enum": list(DIALECTS)}
    # The kubelet's probes and Prometheus come from elsewhere: the open listener has to be open.
    found["properties"]["http"]["properties"]["metrics"]["pattern"] = r"^(\[::\]|0\.0\.0\.0):[1-9][0-9]{0,4}$"
    return found


def _inlined(part: Any, definitions: Json) -> Any:  # noqa: ANN401  # any JSON
    """Return *part* without references, titles and defaults: the agent has the defaults, and nobody reads a title."""
    if isinstance(part, list):
        return [_inlined(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _inlined(definitions[part["$ref"].rpartition("/")[2]], definitions)
    kept = {key: value for key, value in part.items() if key not in ("$defs", "title", "default")}
    if kept.get("required") == []:
        del kept["required"]
    return {
        key: {name: _inlined(item, definitions) for name, item in value.items()}
        if key == "properties"
        else _inlined(value, definitions)
        for key, value in kept.items()
    }


def _mapping(**properties: Json) -> Json:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _port() -> Json:
    return {"type": "integer", "minimum": 1, "maximum": 65535}


def _count_or_share() -> Json:
    """Return the schema of a number of nodes or a share of them, and never none: then nothing would be replaced."""
    return {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^([1-9][0-9]?|100)%$"}]}
