"""A forward pass through a dense model that holds one layer of weights at a time.

The layers are transformers' own modules, in float32, fed by transformers' own preparation of masks and positions, so
the states are those of the whole model, exactly. All texts go through a layer before the next one is read, a batch at a
time: what a layer needs while it runs depends on the largest batch, what is kept between layers on all of them.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers import __version__ as transformers_version

from lazymoe.architectures.records import LAYER
from lazymoe.checkpoint.source import EMBEDDINGS
from lazymoe.checkpoint.tensors import TensorInfo
from lazymoe.errors import LazyMoEError, error
from lazymoe.forward.parts import Enough, FeedForward, Merge, Parts, linear_maps

LEADING = (  # keys of a config.json that no model here needs, that lead transformers to kernels, packages, other files
    "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
    "quantization_config", "transformers_weights",
)  # fmt: skip
Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a layer is given beside its states


class Weights(Protocol):
    """What a pass reads: a `Source`, or what gives tensors as one does."""

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def folder(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def load(self, name: str) -> Tensor: ...

    def rows(self, name: str, indices: Iterable[int]) -> Tensor: ...


class Stream:
    """Texts on their way through a model's layers.

    Padding goes to the right: under causal attention no token sees what follows it, so no mask is needed, and the
    states of real tokens are those of the text by itself.

    Attributes:
        states: the residual stream of each batch before layer ``next``, float32 ``[B, T, H]``; after all steps, what
            the final norm reads.
        next: number of the layer that the next step runs.
    """

    @torch.no_grad()
    def __init__(self, source: Weights, batches: Sequence[Tensor], device: str) -> None:
        """Embed the texts.

        Args:
            source: the model; its weights must be on the disk.
            batches: token ids, int64, each ``[B, T]``.
            device: where to compute.

        Raises:
            SourceError: if there is a token that its embeddings lack.
        """
        self.source, self.device, self.next = source, device, 0
        self._decoder = _skeleton(source, device)
        self.states, self._calls = _record(self._decoder, source, batches, device)

    @torch.no_grad()
    def step(
        self,
        watch: Callable[[nn.Module], object] | None = None,
        feed_forward: tuple[str, FeedForward] | None = None,
        merge: Merge | None = None,
    ) -> None:
        """Run one layer.

        Args:
            watch: called with the layer before it runs, to hook what it wants to see.
            feed_forward: name of the layer's feed-forward module, whose weights are left unread, and what to do in its
                place, once for all batches together.
            merge: gives the linear maps outside the feed-forward module their weights, which are left unread too, when
                what they read is known; only where something is done in place of that module.

        Raises:
            SourceError: if a state becomes NaN or infinite.
        """
        layer, prefix = self._decoder.layers[self.next], LAYER.format(layer=self.next)
        layer.to_empty(device=self.device)
        merged = {f"{name}.weight" for name in linear_maps(layer, feed_forward[0])} if merge and feed_forward else ()
        for name, tensor in layer.state_dict().items():  # buffers too, where they are kept on disk
            if name not in merged and not (feed_forward and name.startswith(feed_forward[0] + ".")):
                tensor.copy_(_promised(self.source, prefix + name))
        if watch:
            watch(layer)
        self.states = list(self.states)
        made: Iterator[Tensor] = (self._run(layer, i) for i in range(len(self.states)))
        if feed_forward:
            parts = Parts(layer, feed_forward[0], functools.partial(self._run, layer), len(self.states))
            made = parts.finish(parts.attend(merge), feed_forward[1])
        for i, states in enumerate(made):  # each takes the place of the one before at once
            self.states[i] = states
        self._decoder.layers[self.next] = nn.Identity()  # lets the weights go
        self.next += 1
        if not all(torch.isfinite(s).all() for s in self.states):
            what = f"the hidden states after layer {self.next - 1} are NaN or infinite"
            remedy = "This model is broken: use another one, or download it again."
            raise error("source.broken", self.source.folder, what, remedy)

    def _run(self, layer: nn.Module, batch: int) -> Tensor:
        args, kwargs = self._calls[self.next][batch]
        states: Tensor = layer(self.states[batch], *args, **kwargs)
        return states

    @torch.no_grad()
    def finish(self) -> list[Tensor]:
        """Put the states through the final norm, after all steps: what the head reads.

        Returns:
            The states of each batch, float32 ``[B, T, H]``.
        """
        inner = ("embed_tokens", "layers")
        [name] = {n.split(".")[0] for n, _ in self._decoder.named_parameters()} - set(inner)
        norm = getattr(self._decoder, name)
        norm.to_empty(device=self.device)
        for part, parameter in norm.named_parameters():
            parameter.copy_(self.source.load(f"model.{name}.{part}"))
        return [norm(s) for s in self.states]


def _promised(source: Weights, name: str) -> Tensor:
    """Read a tensor that the model's class wants.

    Raises:
        SourceError: if the checkpoint hasn't got it.
    """
    try:
        return source.load(name)
    except KeyError:
        what = f"it lacks '{name}', which a model of its config.json has"
        raise error("source.incomplete", source.folder, what, "Mend its config.json, or download it again.") from None


def settled_config(source: Weights) -> Any:
    """Make transformers' config of a dense model, from its completed config.json.

    Args:
        source: the model.

    Raises:
        SourceError: if transformers can't.
    """
    given = {
        key: copy.deepcopy(value)
        for key, value in source.config.items()
        if key not in ("windows", "auto_map", *LEADING)
    }
    if given["model_type"] == "mistral" and given.get("layer_types"):
        given["model_type"] = "ministral"  # what transformers 5 takes such a model for
    try:
        return CONFIG_MAPPING[given["model_type"]].from_dict(given)
    except Exception as e:  # whatever its values make the class raise, or a transformers that is too old
        raise _unmade(source, e) from None


def _unmade(source: Weights, e: Exception) -> LazyMoEError:
    """Say in one line why transformers can't make a model of a config."""
    why = str(e).splitlines()[0][:100] if str(e) else type(e).__name__
    kind = source.config["model_type"]
    what = f"transformers {transformers_version} can't make a {kind} of its config.json ({why})"
    return error("source.config", source.folder, what, "Mend it, or use a newer transformers.")


def _skeleton(source: Weights, device: str) -> Any:
    """Make the model's decoder without weights; only what it computes for itself (rotary tables) is real."""
    config = settled_config(source)
    try:
        config.use_cache = False
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
            )
        decoder = model.base_model
        for name, module in list(decoder.named_children()):
            if name.startswith("rotary_emb"):
                setattr(decoder, name, type(module)(config=config).to(device))
    except Exception as e:  # whatever a config's values make the class raise
        raise _unmade(source, e) from None
    own_buffers(decoder, decoder.embed_tokens, device)
    return decoder.eval()


def own_buffers(model: Any, module: nn.Module, device: str) -> None:
    """Make the buffers of a model's module real, such as the scale of Gemma's embeddings, if it has any.

    Args:
        model: the model, or its decoder.
        module: part of it, changed in place.
        device: where they go.
    """
    buffers = dict(module.named_buffers(recurse=False))
    for name, buffer in buffers.items():
        setattr(module, name, torch.empty_like(buffer, device=device))
    if buffers:
        model._init_weights(module)  # weights that aren't real stay so


def _record(
    decoder: Any, source: Weights, batches: Sequence[Tensor], device: str
) -> tuple[list[Tensor], list[list[Call]]]:
    """Run the model without its layers, and record how these are called.

    Returns:
        The residual stream before the first layer, float32 ``[B, T, H]`` for each batch; and for each layer what it is
        given beside that, for each batch.

    Raises:
        SourceError: if there is a token that its embeddings lack.
    """
    ids, places = torch.unique(torch.cat([b.reshape(-1) for b in batches]), return_inverse=True)
    decoder.embed_tokens.padding_idx = None  # a number among all tokens, of which only some are here
    decoder.embed_tokens.weight = nn.Parameter(
        source.rows(EMBEDDINGS, ids.tolist()).float().to(device), requires_grad=False
    )

    states: list[Tensor] = []
    calls: list[list[Call]] = [[] for _ in decoder.layers]

    def recorder(i: int) -> Any:
        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            calls[i].append((args, kwargs))
            if i == 0:
                states.append(hidden)
            if i + 1 == len(calls):
                raise Enough
            return hidden

        return forward

    for i, layer in enumerate(decoder.layers):
        layer.forward = recorder(i)
    start = 0
    for batch in batches:
        local = places[start : start + batch.numel()].reshape(batch.shape).to(device)  # rows of the few embeddings read
        start += batch.numel()
        with suppress(Enough):
            decoder(input_ids=local, use_cache=False)
    for layer in decoder.layers:
        del layer.forward  # back to the class's own
    decoder.embed_tokens = nn.Identity()  # lets the embeddings go
    return states, calls
