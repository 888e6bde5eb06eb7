"""The chart's files that need no Helm to be judged."""

import json

import yaml

from daemonset.packaging.schema import CHART, configuration_schema, rendered
from nodeagent import __version__
from tests.unit.test_configuration import EVERY_KEY


def test_the_schema_is_generated_as_it_is_committed() -> None:
    assert (CHART / "values.schema.json").read_text() == rendered(), "run `make manifests`"


def test_the_chart_is_of_this_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


def test_the_schema_knows_every_value_and_no_other() -> None:
    def known(schema: dict[str, object], values: object) -> None:
        properties = schema.get("properties")
        if isinstance(properties, dict) and isinstance(values, dict) and values:
            assert values.keys() <= properties.keys()
            for name, value in values.items():
                known(properties[name], value)

    schema, values = json.loads(rendered()), yaml.safe_load((CHART / "values.yaml").read_text())
    known(schema, values)
    assert schema["properties"].keys() - {"global"} == values.keys()


def test_the_schema_of_the_configuration_has_every_key() -> None:
    settings = yaml.safe_load(EVERY_KEY)
    assert configuration_schema()["properties"].keys() == settings.keys()
