"""What /metrics says that has to be computed: named ranges that pods exclude."""

from collections.abc import Mapping

import pytest

from nodeagent.policy import read_configuration, resolve
from nodeagent.web.scrape import excluded_ranges

CONFIGURATION = "ranges: {db: [10.20.0.0/16, 'fd00:20::/32'], lan: [10.0.0.0/8]}"


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        pytest.param([""], {"db": 0, "lan": 0}, id="what nobody excludes is 0"),
        pytest.param(["@db", "@db", ""], {"db": 2, "lan": 0}, id="each pod that names it counts"),
        pytest.param(["10.0.0.0/8,fd00::/8"], {"db": 1, "lan": 1}, id="a wider exclusion counts, by whatever name"),
        pytest.param(["10.20.0.0/16"], {"db": 0, "lan": 0}, id="half of a range is none of it"),
        pytest.param(
            ["10.20.0.0/17,10.20.0.0/16,fd00:20::/32"], {"db": 1, "lan": 0}, id="narrower ones do not hide it"
        ),
    ],
)
def test_pods_that_exclude_a_named_range_are_counted(annotations: list[str], expected: Mapping[str, int]) -> None:
    configuration = read_configuration(CONFIGURATION)
    key = "nodeagent.io/excludeOutboundIPRanges"
    policies = [resolve({key: value} if value else {}, configuration).policy for value in annotations]
    assert excluded_ranges(configuration, policies) == expected
