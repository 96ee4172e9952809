"""Add mean pooling and a linear ``head`` to timm's encoders that have no classifier."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, cast

from torch import Tensor, nn

from headkit.adapters.errors import ContractError

from .timm_exceptions import ENCODERS, find_row


def add_classifier_methods(model: nn.Module) -> nn.Module:
    """Add ``get_classifier`` and ``reset_classifier`` in place to an encoder that lacks them.

    The encoder's tensors keep their names. Its logits are ``head`` of the mean over its output. A
    model that has both methods is not changed.

    Raises:
        ContractError: The model lacks the methods, and ``ENCODERS`` has no row for its class.
    """
    methods = ("get_classifier", "reset_classifier")
    if all(callable(getattr(model, method, None)) for method in methods):
        return model
    known = type(model).__name__ in ENCODERS
    if not known or not isinstance(getattr(model, "head_hidden_size", None), int):
        inside = next(
            (
                path
                for path, part in model.named_modules()
                if path and hasattr(part, "pretrained_cfg")
            ),
            None,
        )
        raise ContractError(
            f"{type(model).__name__} lacks {' or '.join(methods)}, expected a timm model"
            + (f": pass its part {inside}" if inside else "")
        )
    model.__class__ = _subclass_with_classifier(type(model))
    cast(Any, model).reset_classifier(0)
    return model


class _EncoderWithClassifier:
    """Base class that applies ``head`` to the mean over an encoder's output."""

    head: nn.Module
    _encoder: type[Any]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle timm's own class; unpickling creates the subclass from it again."""
        _, _, *state = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        return _new_instance, (self._encoder,), *state

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return logits ``[batch, num_classes]``; pooled features if there are no classes."""
        masks: list[Tensor] = []
        encoder = cast(Any, self)
        mask_path = find_row(ENCODERS, encoder)
        with ExitStack() as stack:
            # The mask belongs to the output only if the output is the pooler's tokens.
            if mask_path is not None and encoder.global_pool == "soft":

                def keep_mask(_module: nn.Module, _args: Any, out: Any) -> None:
                    masks.append(out[1])

                stack.callback(
                    encoder.get_submodule(mask_path).register_forward_hook(keep_mask).remove
                )
            encoded = super().forward(*args, **kwargs)  # type: ignore[misc]
        channels_last = getattr(encoder, "output_fmt", "NCHW") == "NHWC"
        pooled = _mean(encoded, masks[0] if masks else None, channels_last=channels_last)
        if pooled.shape[-1] != encoder.head_hidden_size:
            raise ContractError(
                f"{type(self).__name__} returns {pooled.shape[-1]} features, "
                f"expected {encoder.head_hidden_size}"
            )
        return cast(Tensor, self.head(pooled))

    def get_classifier(self) -> nn.Module:
        """Return ``head``."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace ``head`` by a new linear layer, or by ``Identity`` for 0 classes."""
        encoder = cast(Any, self)
        if global_pool not in (None, getattr(encoder, "global_pool", None)):
            raise ContractError(
                f"global_pool is {global_pool!r}, but the pooling of an encoder cannot be changed: "
                "call reset_classifier without global_pool"
            )
        reference = next(encoder.parameters())
        encoder.num_classes = num_classes
        self.head = (
            nn.Linear(
                encoder.head_hidden_size,
                num_classes,
                device=reference.device,
                dtype=reference.dtype,
            )
            if num_classes > 0
            else nn.Identity()
        )
        self.head.train(encoder.training)


def _mean(encoded: Tensor, mask: Tensor | None, *, channels_last: bool) -> Tensor:
    if encoded.ndim == 4:
        return encoded.mean((1, 2) if channels_last else (2, 3))
    if encoded.ndim == 3 and mask is not None:
        valid = mask.unsqueeze(-1).to(encoded.dtype)
        return (encoded * valid).sum(1) / valid.sum(1).clamp(min=1)
    return encoded.mean(1) if encoded.ndim == 3 else encoded


_SUBCLASSES: dict[type[Any], type[nn.Module]] = {}


def _subclass_with_classifier(encoder: type[Any]) -> type[nn.Module]:
    """Return a subclass of timm's ``encoder`` with a classifier."""
    name = encoder.__name__
    doc = f"timm's ``{name}`` with a classifier."
    if encoder not in _SUBCLASSES:
        namespace = {"__module__": __name__, "__doc__": doc, "_encoder": encoder}
        subclass = type(f"Classifying{name}", (_EncoderWithClassifier, encoder), namespace)
        _SUBCLASSES.setdefault(encoder, subclass)  # threads may race: the first subclass stays
    return _SUBCLASSES[encoder]


def _new_instance(encoder: type[Any]) -> nn.Module:
    """Return an instance without attributes; unpickling and copying set them."""
    subclass = _subclass_with_classifier(encoder)
    return subclass.__new__(subclass)
