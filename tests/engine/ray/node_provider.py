"""What Ray's autoscaler asks for nodes: raylets on this machine, by Ray's own provider for tests."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class LocalNodes(FakeMultiNodeProvider):  # type: ignore[misc] # it has no types
    """A node type's memory is what the autoscaler counts with. Ray's provider would hand it on where no raylet takes
    it; these nodes have the machine's."""

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
