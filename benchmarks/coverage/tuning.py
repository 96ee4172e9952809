"""Check that changes to a backbone can be trained and merged, for one architecture."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from headkit.adapters.backbone.delta.delta import Delta
from headkit.adapters.backbone.delta.merge import merge_delta
from headkit.adapters.backbone.fingerprint import backbone_info, fingerprint
from headkit.adapters.backbone.module_copy import all_tensors, forget_results
from headkit.adapters.tuning.change import vectors
from headkit.adapters.tuning.layers import find_layers
from headkit.adapters.tuning.methods import METHODS
from headkit.adapters.tuning.trainable import Trainable

from .models import create_on_meta, expect, prepare_smallest_input
from .random_weights import randomize_constants, relative_difference

METHOD = "affine"
_RATE, _STEPS = 1e-3, 2
_TOLERANCE = 1e-5
"""Largest difference of the merged model, divided by the largest logit."""


def tuning(name: str) -> dict[str, Any]:
    """Count what ``affine`` trains in any case, on the meta device, which allocates no weights.

    Returns:
        ``vectors``: the number of values of the backbone's vectors, see ``change.vectors``.

    Raises:
        ContractError: There are none.
    """
    model = create_on_meta(name)
    named = dict(model.named_parameters())
    count = sum(named[one].numel() for one in vectors(model))
    expect(count > 0, "the backbone has no vectors to train")
    return {"vectors": count}


def tuning_merged(name: str) -> dict[str, Any]:
    """Train ``affine`` changes on real tensors with random weights, and merge them.

    Two steps with two images change what the delta says and nothing else. A fresh backbone with the
    merged delta has the logits of the trained model.

    Returns:
        ``values``: number of trained values. ``share``: their bytes divided by those of the
        backbone. ``scaled``: number of layers with a scale. ``difference``: that of the merged
        model, relative to the largest logit. ``effect``: that of the training, in the same unit.
        ``rounding``: if the difference is above 1e-5, that of float32 and float64, which may be
        half as large.

    Raises:
        ContractError: A part of this does not hold.
    """
    model, x, _, _ = prepare_smallest_input(name)
    randomize_constants(model)
    plain, _, _, _ = prepare_smallest_input(name)
    randomize_constants(plain)
    for one in (model, plain):
        forget_results(one)
    base = backbone_info(plain).fingerprint
    with torch.no_grad():
        before = plain(x)
    layers = find_layers(model, x)
    expect(backbone_info(model).fingerprint == base, "finding the layers changes the weights")
    trainable = Trainable(model, METHODS[METHOD].place(model, layers, 0))
    _train(trainable, x)
    with torch.no_grad():
        expected = model(x)
    delta = Delta(METHOD, base, {k: v.numpy() for k, v in trainable.trained().items()})
    plain.load_state_dict(trainable.head, strict=False)
    merge_delta(plain, delta)
    with torch.no_grad():
        merged = plain(x)
        difference, rounding = relative_difference(merged, expected), 0.0
        if difference > _TOLERANCE:
            rounding = relative_difference(merged, plain.double()(x.double()).float())
    limit = max(_TOLERANCE, 2 * rounding)
    expect(
        difference <= limit,
        f"the merged model differs by {difference:.1e} of the largest logit, expected at most "
        f"{limit:.0e}",
    )
    return {
        "values": delta.num_values,
        "share": round(delta.num_values / backbone_info(plain).parameters, 6),
        "scaled": sum(one.endswith(".scale") for one in delta.tensors),
        "difference": difference,
        "rounding": rounding,
        "effect": relative_difference(before, expected),
        "input": list(x.shape[1:]),
    }


def _train(trainable: Trainable, x: torch.Tensor) -> None:
    trained = {id(tensor) for tensor in (*trainable.tensors.values(), *trainable.head.values())}
    others = {n: t for n, t in all_tensors(trainable.model).items() if id(t) not in trained}
    before = fingerprint(others)
    optimizer = torch.optim.Adam([*trainable.tensors.values(), *trainable.head.values()], _RATE)
    for _ in range(_STEPS):
        loss = nn.functional.cross_entropy(trainable.model(x), torch.tensor([0, 1]))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        forget_results(trainable.model)
    expect(fingerprint(others) == before, "training changes more than the delta says")
