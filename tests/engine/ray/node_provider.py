"""A node provider for Ray's autoscaler: starts raylets on this machine, based on Ray's own provider for tests."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class LocalNodes(FakeMultiNodeProvider):  # type: ignore[misc] # it has no types
    """The autoscaler plans with the memory of a node type. Ray's provider would pass it on to raylets, which do not
    accept it there; these nodes have the memory of the machine."""

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        taken = {name: amount for name, amount in resources.items() if name != "memory"}
        super().create_node_with_resources_and_labels(node_config, tags, count, taken, labels)
