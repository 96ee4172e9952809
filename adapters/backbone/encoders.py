"""timm's encoders without a classifier: mean pooling and a linear ``head`` are supplied here."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, cast

from torch import Tensor, nn

from headkit.adapters.errors import ContractError

from .timm_exceptions import ENCODERS, exception_for


def give_classifier(model: nn.Module) -> nn.Module:
    """Give timm's two methods to an encoder that lacks them, in place; leave any other model alone.

    The names of the encoder's own tensors stay. Its logits are ``head(mean of what it returns)``.

    Raises:
        ContractError: the model lacks them and is no encoder that is known here.
    """
    methods = ("get_classifier", "reset_classifier")
    if all(callable(getattr(model, method, None)) for method in methods):
        return model
    known = type(model).__name__ in ENCODERS
    if not known or not isinstance(getattr(model, "head_hidden_size", None), int):
        raise ContractError(
            f"{type(model).__name__} lacks {' or '.join(methods)}, expected a timm model"
        )
    model.__class__ = _classifying(type(model))
    cast(Any, model).reset_classifier(0)
    return model


class _Classifying:
    """Mean over what an encoder returns, then ``head``: timm's two methods for an encoder."""

    head: nn.Module
    _encoder: type[Any]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle timm's own class: the subclass is made again from it."""
        _, _, *state = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        return _empty, (self._encoder,), *state

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return logits ``[batch, num_classes]``, or pooled features without classes."""
        masks: list[Tensor] = []
        encoder = cast(Any, self)
        masked_by = exception_for(ENCODERS, encoder)
        with ExitStack() as stack:
            # Only where the encoder returns the pooler's tokens does its mask belong to them.
            if masked_by is not None and encoder.global_pool == "soft":

                def keep(_module: nn.Module, _args: Any, out: Any) -> None:
                    masks.append(out[1])

                stack.callback(encoder.get_submodule(masked_by).register_forward_hook(keep).remove)
            encoded = super().forward(*args, **kwargs)  # type: ignore[misc]
        channels_last = getattr(encoder, "output_fmt", "NCHW") == "NHWC"
        pooled = _mean(encoded, masks[0] if masks else None, channels_last=channels_last)
        if pooled.shape[-1] != encoder.head_hidden_size:
            raise ContractError(
                f"{type(self).__name__} gives {pooled.shape[-1]} features, "
                f"expected {encoder.head_hidden_size}"
            )
        return cast(Tensor, self.head(pooled))

    def get_classifier(self) -> nn.Module:
        """Return ``head``."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new linear ``head`` there; ``Identity`` for 0 classes."""
        encoder = cast(Any, self)
        if global_pool not in (None, getattr(encoder, "global_pool", None)):
            raise ContractError("the pooling of an encoder is chosen when it is created")
        like = next(encoder.parameters())
        encoder.num_classes = num_classes
        self.head = (
            nn.Linear(encoder.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
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


_MADE: dict[type[Any], type[nn.Module]] = {}


def _classifying(encoder: type[Any]) -> type[nn.Module]:
    """Return a subclass of timm's ``encoder`` with a classifier."""
    name = encoder.__name__
    doc = f"timm's ``{name}`` with a classifier."
    if encoder not in _MADE:
        namespace = {"__module__": __name__, "__doc__": doc, "_encoder": encoder}
        made = type(f"Classifying{name}", (_Classifying, encoder), namespace)
        _MADE.setdefault(encoder, made)  # the first one stays, whichever thread made it
    return _MADE[encoder]


def _empty(encoder: type[Any]) -> nn.Module:
    """Return an instance without attributes: unpickling and copying fill it."""
    made = _classifying(encoder)
    return made.__new__(made)
