"""When a run is given up because its actors cannot be created."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, RayError

from arrowquant_dist.engine.ray.actor import Hello
from arrowquant_dist.engine.ray.crew import Crew

NODE_LOST = "The actor died because its node has died. Node Id: f0\n\tthe actor's node was terminated: received SIGTERM"
WORKER_LOST = "The actor died because its worker process has died. Worker exit type: SYSTEM_ERROR"


@pytest.fixture
def starting(monkeypatch: pytest.MonkeyPatch) -> Crew:
    monkeypatch.setattr(ray, "kill", lambda *_, **__: None)
    handle = SimpleNamespace(hello=SimpleNamespace(remote=lambda: None))
    return Crew(lambda: handle, "code", 0.0)


def died(why: str) -> RayError:
    context = ActorDiedErrorContext(actor_id=bytes(16), error_message=why, never_started=True)
    error: RayError = ActorDiedError(context)
    return error


def fail(starting: Crew, why: str, times: int, now: float = 0.0) -> float:
    """So many actors fail to start, each after the pause that follows the failure before it."""
    for _ in range(times):
        now += 60.0
        (seat,) = starting.fill(1, now)
        starting.start_failed(seat, died(why), now)
    return now


def test_three_that_die_at_their_start_end_the_run(starting: Crew) -> None:
    now = fail(starting, WORKER_LOST, 2)
    with pytest.raises(ActorDiedError, match="worker process has died"):
        fail(starting, WORKER_LOST, 1, now)


def test_nodes_that_go_while_actors_start_are_no_reason_to_give_up_soon(starting: Crew) -> None:
    now = fail(starting, NODE_LOST, 29)
    with pytest.raises(ActorDiedError, match="its node has died"):
        fail(starting, NODE_LOST, 1, now)


def test_an_actor_that_answers_makes_earlier_failures_count_no_more(starting: Crew) -> None:
    now = fail(starting, NODE_LOST, 29)
    (seat,) = starting.fill(1, now + 60.0)
    starting.welcome(seat, Hello("node", "id", ("code",)), now + 60.0)
    starting.remove(seat, now + 60.0)
    fail(starting, NODE_LOST, 29, now + 60.0)
