"""A forward pass through a dense model that holds one layer of weights at a time.

The layers are transformers' own modules, in float32, fed by transformers' own preparation of masks and positions, so
the states are those of the whole model, exactly. All texts go through a layer before the next one is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lazymoe.errors import error
from lazymoe.families.types import LAYER
from lazymoe.source import Source


class _Enough(Exception):
    """Thrown by the last layer's recorder: what comes after it isn't needed."""


@torch.no_grad()
def layer_inputs(source: Source, batches: Sequence[Tensor], device: str) -> Iterator[list[Tensor]]:
    """The residual stream where each layer reads it.

    Padding goes to the right: under causal attention no token sees what follows it, so no mask is needed, and the
    states of real tokens are those of the text by itself.

    Args:
        source: the model; its weights must be on the disk.
        batches: token ids, int64, each ``[B, T]``.
        device: where to compute.

    Yields:
        For each layer, the states of each batch at its input, float32 ``[B, T, H]``.

    Raises:
        LazyMoEError: if a state is NaN or infinite.
    """
    decoder = _skeleton(source, device)
    states, calls = _record(decoder, source, batches, device)
    for i, layer in enumerate(decoder.layers):
        if not all(torch.isfinite(s).all() for s in states):
            raise error(
                source.folder,
                f"the hidden states before layer {i} are NaN or infinite",
                "This model is broken: use another one, or download it again.",
            )
        yield states
        if i + 1 < len(decoder.layers):
            _materialise(layer, source, LAYER.format(layer=i), device)
            states = [layer(s, **kwargs) for s, kwargs in zip(states, calls[i], strict=True)]
            layer.to("meta")


def _skeleton(source: Source, device: str) -> Any:
    """The model's decoder without weights; only what it computes for itself (rotary tables) is real."""
    config = AutoConfig.from_pretrained(source.folder)
    config.use_cache = False
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").base_model
    for name, module in list(decoder.named_children()):
        if name.startswith("rotary_emb"):
            setattr(decoder, name, type(module)(config=config).to(device))
    return decoder.eval()


def _record(
    decoder: Any, source: Source, batches: Sequence[Tensor], device: str
) -> tuple[list[Tensor], list[list[dict[str, Any]]]]:
    """Run the model without its layers: the states before the first, and how each layer is called for each batch."""
    ids, places = torch.unique(torch.cat([b.reshape(-1) for b in batches]), return_inverse=True)
    name = "model.embed_tokens.weight"
    if int(ids[-1]) >= source.tensors[name].shape[0]:
        raise error(
            source.folder,
            f"its tokenizer has a token {int(ids[-1])}, which its embeddings lack",
            "Use the tokenizer that belongs to this model.",
        )
    decoder.embed_tokens.weight = nn.Parameter(source.rows(name, ids.tolist()).float().to(device), requires_grad=False)

    states: list[Tensor] = []
    calls: list[list[dict[str, Any]]] = [[] for _ in decoder.layers]

    def recorder(i: int) -> Any:
        def forward(hidden: Tensor, **kwargs: Any) -> Tensor:
            calls[i].append(kwargs)
            if i == 0:
                states.append(hidden)
            if i + 1 == len(calls):
                raise _Enough
            return hidden

        return forward

    for i, layer in enumerate(decoder.layers):
        layer.forward = recorder(i)
    start = 0
    for batch in batches:
        local = places[start : start + batch.numel()].reshape(batch.shape).to(device)  # rows of the few embeddings read
        start += batch.numel()
        with suppress(_Enough):
            decoder(input_ids=local, use_cache=False)
    for layer in decoder.layers:
        del layer.forward  # back to the class's own
    return states, calls


def _materialise(layer: nn.Module, source: Source, prefix: str, device: str) -> None:
    layer.to_empty(device=device)
    for name, parameter in layer.named_parameters():
        parameter.copy_(source.load(prefix + name))
