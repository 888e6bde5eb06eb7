"""A running Prometheus, Debian's, in a namespace: it scrapes one target, and runs rules at a multiple of their speed.

with RunningPrometheus(netns, tmp_path, rules) as prometheus:
prometheus.wait(lambda: prometheus.query("up"))
"""

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import yaml

from tests.lab.http import NetnsConnection
from tests.lab.netns import Netns
from tests.lab.process import LabError

HASTE = 30
"""By how much durations of rules and panels are divided: clusters scrape every 30 seconds, the lab every one."""

_PLACE = "127.0.0.1:9090"
_PATIENCE = 120.0
_STEP = 0.25
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Sample(NamedTuple):
    """One series at one moment."""

    labels: dict[str, str]
    value: float


def hasten(duration: str) -> str:
    """Return *duration* divided by HASTE.

    >>> hasten("5m"), hasten("23h30m")
    ('10000ms', '2820000ms')
    """
    seconds = sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"(\d+)([smhd])", duration))
    return f"{seconds * 1000 // HASTE}ms"


def hasten_expression(expr: str) -> str:
    """Return *expr* with each window and offset divided by HASTE.

    >>> hasten_expression("rate(m[5m]) > avg_over_time(m[1h] offset 1d)")
    'rate(m[10000ms]) > avg_over_time(m[120000ms] offset 2880000ms)'
    """
    return re.sub(r"(?<=\[)[\dsmhd]+(?=\])|(?<=offset )[\dsmhd]+", lambda found: hasten(found[0]), expr)


def hasten_rules(document: dict[str, Any]) -> dict[str, Any]:
    """Return a file of rules with each duration divided by HASTE."""
    groups = []
    for group in document["groups"]:
        rules = [{**rule, "expr": hasten_expression(rule["expr"])} for rule in group["rules"]]
        groups.append({**group, "rules": [r | ({"for": hasten(r["for"])} if "for" in r else {}) for r in rules]})
    return {"groups": groups}


class RunningPrometheus:
    """Scrapes ``127.0.0.1:9640`` of *netns* every second, as the agent of ``node-a`` in the cluster ``lab``."""

    def __init__(self, netns: Netns, folder: Path, rules: Path) -> None:
        """Start it in *netns*; it keeps everything below *folder*."""
        self._netns = netns
        hastened = folder / "rules.yaml"
        hastened.write_text(json.dumps(hasten_rules(yaml.safe_load(rules.read_text()))))
        target = {"targets": ["127.0.0.1:9640"], "labels": {"instance": "node-a", "cluster": "lab"}}
        every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        scrape = {"job_name": "nodeagent", "static_configs": [target]}
        config = folder / "prometheus.yaml"
        config.write_text(json.dumps({"global": every, "rule_files": [str(hastened)], "scrape_configs": [scrape]}))
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(*netns.enter, "--", "prometheus", f"--config.file={config}"),
                    *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={_PLACE}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        self.wait(self._is_ready)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise LabError(f"Prometheus ended: {self._log.read_text()[-4000:]}")
        try:
            return self._get("/-/ready")[0] == 200
        except ConnectionError:
            return False

    def wait(self, condition: Callable[[], object], what: str = "what is awaited") -> None:
        """Wait until *condition* holds; LabError if it never does."""
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise LabError(f"{what} never came; firing: {sorted(self.firing())}; {self._log.read_text()[-2000:]}")
            time.sleep(_STEP)

    def query(self, expr: str) -> list[Sample]:
        """Return what *expr* is now; LabError if it is no expression."""
        status, answer = self._get(f"/api/v1/query?query={quote(expr, safe='')}")
        if status != 200:
            raise LabError(f"{answer['error']}: {expr}")
        found = answer["data"]["result"]
        return [Sample(series["metric"], float(series["value"][1])) for series in found]

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that fire, with their labels and annotations."""
        found: list[dict[str, Any]] = self._get("/api/v1/alerts")[1]["data"]["alerts"]
        return [alert for alert in found if alert["state"] == "firing"]

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.alerts()}

    def _get(self, path: str) -> tuple[int, Any]:
        connection = NetnsConnection(_PLACE, self._netns, _PATIENCE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_json else text
        finally:
            connection.close()
