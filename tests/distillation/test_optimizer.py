"""Steps are as large as the rates say."""

from __future__ import annotations

import pytest
import torch

from arrowquant_dist.distillation.optimizer import Optimizer
from arrowquant_dist.distillation.settings import DistillSettings, Rates
from arrowquant_dist.distillation.student import Student
from arrowquant_dist.distillation.vectors import TrainedVector


@pytest.mark.parametrize(
    ("beginning", "done", "multiple"),
    [
        (0.7, 0.0, 1.0),
        (0.35, 0.0, 0.5),
        (0.007, 0.0, 0.01),
        (1.4, 0.0, 2.0),
        (50.0, 0.0, 2.0),
        (0.35, 0.5, 0.25),
    ],
)
def test_a_step_is_in_proportion_to_the_loss_at_the_beginning(
    beginning: float, done: float, multiple: float
) -> None:
    """The first one of Adam is as large as its rate, whatever the gradient."""
    vector = TrainedVector(torch.zeros(3))
    optimizer = Optimizer(
        Student({}, {"norm": vector}, {}, {}, {}), DistillSettings(rates=Rates(vectors=0.001))
    )
    vector.leaf.grad = torch.tensor([4.0, -0.5, 0.02])
    optimizer.step(done, beginning=beginning)
    expected = 0.001 * multiple * torch.tensor([-1.0, 1.0, -1.0])
    assert torch.allclose(vector.values().detach(), expected, rtol=1e-4)
