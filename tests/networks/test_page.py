"""What docs/networks.md is made of is what the tests hold."""

import pytest
from networks import NO_RULE, OVERFLOWS, TRAINS, records
from zoo import networks


def test_every_network_has_its_line():
    published, here = records(), networks()
    frameworks = {row.framework for row in here.values()}
    assert {name for name, record in published.items() if record.framework in frameworks} == set(here)


@pytest.mark.parametrize("name", networks())
def test_a_line_tells_what_the_tests_hold(name):
    row, record = networks()[name], records()[name]
    assert (record.title, record.framework, record.packages) == (row.title, row.framework, row.packages)
    assert record.channel == TRAINS
    assert record.operation == row.without_rule and record.certificates == (row.without_rule is None)
    assert record.interval == (NO_RULE if row.without_rule else OVERFLOWS if row.overflows else TRAINS)
    assert record.measure == "channel" or record.interval == TRAINS
