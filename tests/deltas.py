"""Heads with a delta whose changes are random."""

import numpy as np
import torch
from torch import nn

import headkit
from headkit.adapters.backbone.classifier import classifier_tensors
from headkit.adapters.backbone.delta.delta import Delta
from headkit.adapters.backbone.delta.merge import merge_delta
from headkit.adapters.backbone.fingerprint import backbone_info


def random_delta(model: nn.Module, seed: int = 0) -> Delta:
    """Return changes of all three operations to the parameters of a backbone, in turn."""
    generator = np.random.default_rng(seed)
    own, tensors = classifier_tensors(model), {}
    matrices = 0
    for name, parameter in model.named_parameters():
        if name in own:
            continue
        shape = tuple(parameter.shape)
        noise = generator.standard_normal(shape, np.float32) * 0.1
        if len(shape) == 1:
            tensors[f"{name}.value"] = parameter.detach().numpy() + noise
        elif matrices % 2:
            tensors[f"{name}.scale"] = 1 + noise.reshape(shape[0], -1)[:, 0]
        else:
            tensors[f"{name}.up"] = 0.1 * generator.standard_normal((shape[0], 2), np.float32)
            tensors[f"{name}.down"] = generator.standard_normal((2, *shape[1:]), np.float32) * 0.1
        matrices += len(shape) > 1
    return Delta("random", backbone_info(model).fingerprint, tensors, {"seed": seed})


def head_with_delta(model: nn.Module, num_classes: int = 3, seed: int = 0) -> headkit.Head:
    """Change the weights of ``model``, put an untrained head onto it, and return the head."""
    merge_delta(model, random_delta(model, seed))
    torch.manual_seed(seed)
    labels = [f"class {number}" for number in range(num_classes)]
    return headkit.head_of(headkit.adapt(model, num_classes), labels)
