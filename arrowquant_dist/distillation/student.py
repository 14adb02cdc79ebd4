"""A model that computes with what is trained: at every step each of its weights is made of latent codes, scales and
zero points, in the way in which transformers makes it of the dataset's layers (models/traced.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from arrowquant_dist.distillation.codes import TrainedCodes
from arrowquant_dist.distillation.lookups import Lookup, used_as_whole
from arrowquant_dist.distillation.vectors import TrainedVector
from arrowquant_dist.models.made import FilledModel
from arrowquant_dist.models.traced import Node, Origin, evaluated, sources_of

TrainingResult = Mapping[str, Mapping[str, torch.Tensor]]  # {layer: {part: stored values}}


@dataclass(frozen=True, slots=True)
class Student:
    """matrices: {stored name: trained codes}. vectors: {stored name: trained norm or bias}. lookups: modules for the
    matrices of which only some rows are looked up. made: {name in the model: node}, how parameters are made of these.
    dtypes: {name in the model: dtype}."""

    matrices: Mapping[str, TrainedCodes]
    vectors: Mapping[str, TrainedVector]
    lookups: Mapping[str, Lookup]
    made: Mapping[str, Node]
    dtypes: Mapping[str, torch.dtype]

    def parameters(self) -> dict[str, torch.Tensor]:
        """The parameters for this step, with gradients, by their names in the model."""
        values: dict[str, torch.Tensor] = {
            name: codes.values() for name, codes in self.matrices.items() if name not in self.lookups
        }
        values.update({name: vector.values() for name, vector in self.vectors.items()})
        # each node once: tied parameters have to be one tensor, or torch refuses them
        made: dict[int, torch.Tensor] = {}
        for name, node in self.made.items():
            if id(node) not in made:
                made[id(node)] = evaluated(node, values).to(self.dtypes[name])
        return {name: made[id(node)] for name, node in self.made.items()}

    def found(self) -> TrainingResult:
        """The values to store for each layer at this point: {layer: {part: tensor}}, copies."""
        matrices = {name: codes.found() for name, codes in self.matrices.items()}
        return matrices | {name: {"values": vector.found()} for name, vector in self.vectors.items()}

    def is_by_rows(self, layer: str, part: str) -> bool:
        """Whether this part of a matrix has sparse gradients, with only the rows that a step has looked up."""
        codes = self.matrices[layer]
        return layer in self.lookups and (part == "offsets" or not codes.form.has_one_scale)

    @property
    def leaves(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All that is trained, by its name in a checkpoint."""
        for name, codes in self.matrices.items():
            for part, leaf in codes.leaves.items():
                yield f"{name}.{part}", leaf
        for name, vector in self.vectors.items():
            yield f"{name}.values", vector.leaf


def trainable(filled: FilledModel) -> set[str]:
    """Names of the layers of which nothing but parameters is made, by operations that gradients can pass.

    Not trained are buffers, tensors that transformers changes in place, and layers that share a parameter with these.
    """
    ids = {id(parameter) for parameter in filled.model.parameters()}
    found: set[str] = set()
    others: set[str] = set()
    for made in filled.made:
        is_one = id(made.tensor) in ids and made.tensor.is_floating_point() and not made.is_changed
        (found if is_one else others).update(sources_of(made.node))
    return found - others


def _made_parameters(filled: FilledModel) -> dict[str, Node]:
    """{name in the model: node that makes the parameter}"""
    nodes = {id(made.tensor): made.node for made in filled.made}
    named = filled.model.named_parameters(remove_duplicate=False)
    return {name: nodes[id(parameter)] for name, parameter in named if id(parameter) in nodes}


def build_student(
    filled: FilledModel,
    matrices: Mapping[str, TrainedCodes],
    vectors: Mapping[str, TrainedVector],
    run: Callable[[], object],
) -> Student:
    """Makes the student, with lookups in place of embeddings that are a layer as it is and used for nothing else. run:
    runs the model on a text."""
    model, trained = filled.model, {*matrices, *vectors}
    made = {
        name: node for name, node in _made_parameters(filled).items() if trained.issuperset(sources_of(node))
    }
    parameters = dict(model.named_parameters(remove_duplicate=False))
    dtypes = {name: parameters[name].dtype for name in made}
    lookups: dict[str, Lookup] = {}
    tables = {name: parameters[name] for name, node in made.items() if _is_lookup(model, name, node)}
    alone = tables.keys() - used_as_whole(tables, run)
    for layer in matrices:
        names = [name for name, node in made.items() if layer in sources_of(node)]
        if names and alone.issuperset(names):
            lookups[layer] = Lookup(matrices[layer], dtypes[names[0]])
            for name in names:
                path = name.rpartition(".")[0]
                parent, _, child = path.rpartition(".")
                setattr(model.get_submodule(parent), child, lookups[layer])
                del made[name], dtypes[name]
    return Student(matrices, vectors, lookups, made, dtypes)


def _is_lookup(model: Any, name: str, node: Node) -> bool:
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    return (
        isinstance(node, Origin)
        and type(module) is torch.nn.Embedding
        and own == "weight"
        and not module.max_norm
    )
