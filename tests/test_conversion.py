"""What converters are spared while they work, and that it ends with them."""

from __future__ import annotations

import copy
import gc

import pytest
from torch.fx.traceback import NodeSource

from maestro_edge.runtimes.conversion import converting


@pytest.mark.parametrize("is_enabled", [True, False])
def test_collector_and_copies_are_as_before_after_a_failure(is_enabled: bool) -> None:
    """Inside, nothing is collected and a node's origin is shared; the collector stays off for who had it off."""
    source = NodeSource(None, "a pass")
    was_enabled = gc.isenabled()
    (gc.enable if is_enabled else gc.disable)()
    try:
        with pytest.raises(ValueError, match="of a converter"), converting():
            with converting():
                pass
            assert not gc.isenabled()
            raise ValueError("of a converter")
        found = gc.isenabled()
    finally:
        (gc.enable if was_enabled else gc.disable)()

    assert found == is_enabled
    assert copy.deepcopy([source])[0] is not source


def test_where_a_node_came_from_is_shared_inside() -> None:
    source = NodeSource(None, "a pass")

    with converting():
        shared = copy.deepcopy([source])

    assert shared == [source] and shared[0] is source
