"""A forward pass through a dense model that holds one layer of weights at a time.

The layers are transformers' own modules, in float32, fed by transformers' own preparation of masks and positions, so
the states are those of the whole model, exactly. All texts go through a layer before the next one is read, a batch at a
time: what a layer needs while it runs depends on the largest batch, what is kept between layers on all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import __version__ as transformers_version

from lazymoe.architectures.learned import learn
from lazymoe.architectures.records import Dense
from lazymoe.architectures.watching import decoder_of, layers_of
from lazymoe.errors import error
from lazymoe.forward.parts import Enough, FeedForward, Merge, Parts, instead
from lazymoe.forward.skeleton import Weights, allocate, skeleton
from lazymoe.forward.spilling import room_for_states
from lazymoe.memory import give_back, give_back_large

Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a layer is given beside its states


class Stream:
    """Texts on their way through a model's layers.

    Padding goes to the right: under causal attention no token sees what follows it, so no mask is needed, and the
    states of real tokens are those of the text by itself.

    Attributes:
        states: the residual stream of each batch before layer ``next``, float32 ``[B, T, H]``; after all steps, what
            the final norm reads. In memory, or on the disk.
        next: number of the layer that the next step runs.
    """

    @torch.no_grad()
    def __init__(self, source: Weights, batches: Sequence[Tensor], device: str, place: Path | None = None) -> None:
        """Embed the texts.

        Args:
            source: the model.
            batches: token ids, int64, each ``[B, T]``.
            device: where to compute.
            place: a folder for the states, if they aren't to be in memory between two layers.

        Raises:
            SourceError: if there is a token that its embeddings lack.
        """
        give_back_large()
        self.source, self.device, self.next = source, device, 0
        self._model = skeleton(source)
        _, self._layers = layers_of(self._model)
        self._decoder = decoder_of(self._model)
        self._ids = [batch.to(device) for batch in batches]
        self._made: Any = None  # what the decoder gave last
        waiting: dict[str, RemovableHandle] = {}  # modules outside the layers whose weights aren't read yet
        for name, module in self._model.named_modules():
            if not (f"{name}.".startswith(self._within) or isinstance(module, nn.Embedding)):
                bring = functools.partial(_bring, source, device, waiting, name)  # not of itself: it is let go at once
                waiting[name] = module.register_forward_pre_hook(bring)
        self._room = functools.partial(room_for_states, place, device)
        self.states: MutableSequence[Tensor] = self._room()
        self._calls = self._record()

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
                place, once for all batches together; what that is given lies where the states do.
            merge: gives the linear maps outside the feed-forward module their weights, which are left unread too, when
                what they read is known; only where something is done in place of that module.

        Raises:
            SourceError: if a state becomes NaN or infinite.
        """
        layer, prefix = self._layers[self.next], _dense(self.source).within(self.next)
        allocate(layer, self.device)
        parts, merged = None, set[str]()
        if feed_forward:
            run = functools.partial(self._run, layer)
            parts = Parts(layer, feed_forward[0], run, len(self.states), self._room)
            merged = {f"{name}.weight" for group in parts.groups for name in group if merge}
        for name, tensor in layer.state_dict().items():  # buffers too, where they are kept on disk
            if name not in merged and not (feed_forward and name.startswith(feed_forward[0] + ".")):
                tensor.copy_(_promised(self.source, prefix + name))
        if watch:
            watch(layer)
        made: Iterator[Tensor] = (self._run(layer, i) for i in range(len(self.states)))
        if parts and feed_forward:
            made = parts.finish(parts.attend(merge), feed_forward[1])
        for i, states in enumerate(made):  # each takes the place of the one before at once
            if not torch.isfinite(states).all():
                what = f"the hidden states after layer {self.next} are NaN or infinite"
                remedy = "This model is broken: use another one, or download it again."
                raise error("source.broken", self.source.folder, what, remedy)
            self.states[i] = states
        layer.to("meta")  # lets the weights go
        give_back()
        self.next += 1

    def _run(self, layer: nn.Module, batch: int) -> Tensor:
        args, kwargs = self._calls[self.next][batch]
        made = layer(self.states[batch], *args, **kwargs)
        states: Tensor = made[0] if isinstance(made, tuple) else made
        return states

    @torch.no_grad()
    def finish(self) -> Iterator[Tensor]:
        """Put the states through what comes after the layers, after all steps: what the head reads.

        Yields:
            The states of each batch, float32 ``[B, T, H]``.
        """
        for ids, states in zip(self._ids, self.states, strict=True):
            given = self._given(states)
            with ExitStack() as stack:
                for module in self._tables():  # what they give goes nowhere
                    stack.enter_context(instead(module, functools.partial(_nothing, module.embedding_dim)))
                for layer in self._layers:
                    stack.enter_context(instead(layer, lambda *_, given=given, **__: given))
                self._made = self._decoder(input_ids=ids, use_cache=False)
            yield self._made[0]

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Put states through the head, after `finish`, and through what the model does to what that gives.

        Args:
            x: what the head reads ``[n, H]``.

        Returns:
            The logits ``[n, V]``.
        """
        self._made.last_hidden_state = x[None]
        with instead(self._decoder, lambda *_, **__: self._made):
            found: Tensor = self._model(input_ids=self._ids[0], use_cache=False).logits
        return found[0]

    @property
    def _within(self) -> str:
        """What is before the names of all layers."""
        return _dense(self.source).prefix.partition("{")[0]

    def _tables(self) -> list[nn.Embedding]:
        """List the embeddings, of tokens, and of positions or whatever else the model has."""
        return [module for module in self._model.modules() if isinstance(module, nn.Embedding)]

    def _given(self, states: Tensor) -> Any:
        """Give states as a layer does."""
        gives = _dense(self.source).gives
        if transformers_version < "5":  # of which a record doesn't tell
            gives = learn(self.source.config).gives
        return (states, *[None] * (gives - 1)) if gives else states

    def _record(self) -> list[list[Call]]:
        """Run the model without its layers, keep what the first of these is given, and record how they are called.

        Returns:
            For each layer what it is given beside the states, for each batch.

        Raises:
            SourceError: if there is a token that its embeddings lack.
        """
        calls: list[list[Call]] = [[] for _ in self._layers]

        def recorder(i: int) -> Any:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden = args[0] if args else kwargs.pop("hidden_states")
                calls[i].append((args[1:], kwargs))
                if i == 0:
                    self.states.append(hidden)
                if i + 1 == len(calls):
                    raise Enough
                return self._given(hidden)

            return forward

        known = torch.unique(torch.cat([ids.reshape(-1) for ids in self._ids]))
        with ExitStack() as stack:
            for i, layer in enumerate(self._layers):
                stack.enter_context(instead(layer, recorder(i)))
            tables = {id(module): name for name, module in self._model.named_modules()}
            for module in self._tables():
                name = f"{tables[id(module)]}.weight"
                stack.enter_context(instead(module, _rows_of(self.source, name, module, known, self._ids)))
            for ids in self._ids:
                with suppress(Enough):
                    self._decoder(input_ids=ids, use_cache=False)
        for module in self._tables():
            module.to("meta")  # lets the embeddings go
        return calls


def _bring(
    source: Weights, device: str, waiting: dict[str, RemovableHandle], name: str, module: nn.Module, _: Any
) -> None:
    """Read a module's own weights, when it is first called.

    Args:
        source: the model.
        device: where they go.
        waiting: what calls this, by the modules' names.
        name: of the module.
        module: it, changed in place.
    """
    waiting.pop(name).remove()
    allocate(module, device, recurse=False)
    for own, tensor in module.state_dict().items():
        if "." not in own:
            tensor.copy_(_promised(source, f"{name}.{own}"))


def _rows_of(
    source: Weights, name: str, module: nn.Embedding, known: Tensor, texts: Sequence[Tensor]
) -> Callable[[Tensor], Tensor]:
    """Make what stands for embeddings: of tokens it reads only the rows that there are in the texts, once.

    Args:
        source: the model.
        name: of the weight.
        module: the embeddings.
        known: all tokens in the texts, sorted ``[n]``.
        texts: token ids, each ``[B, T]``.
    """

    def forward(ids: Tensor) -> Tensor:
        of_tokens = any(ids.shape == text.shape and torch.equal(ids, text) for text in texts)
        wanted = known if of_tokens else torch.unique(ids)
        if module.weight.is_meta or not of_tokens:
            module.padding_idx = None  # a number among all tokens, of which only some are here
            rows = source.rows(name, wanted.tolist()).float().to(ids.device)
            module.weight = nn.Parameter(rows, requires_grad=False)
        found: Tensor = type(module).forward(module, torch.searchsorted(wanted, ids))
        return found

    return forward


def _nothing(width: int, ids: Tensor) -> Tensor:
    """Stand for embeddings of a width that nobody looks at."""
    return torch.zeros(*ids.shape, width, device=ids.device)


def _dense(source: Weights) -> Dense:
    """Give the record of a model's architecture, which every model that is read here has."""
    assert source.dense
    return source.dense


def _promised(source: Weights, name: str) -> Tensor:
    """Read a tensor that the model's class wants.

    Raises:
        SourceError: if the checkpoint hasn't got it.
    """
    try:
        tied = name == _dense(source).head and name not in source.tensors
        return source.load(_dense(source).embeddings if tied else name)
    except KeyError:
        what = f"it lacks '{name}', which a model of its config.json has"
        raise error("source.incomplete", source.folder, what, "Mend its config.json, or download it again.") from None
