"""A layer that is halted where something is decided on all texts together: before its maps, and its network.

Attention and what is in its place run once all the same: what comes of them is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

Names = tuple[str, ...]  # of linear maps in a layer that read the same
# such maps, and what gives the input of a batch by its number [B, T, in]: the maps' weights [out, in] by name
Merge = Callable[[Names, Callable[[int], Tensor]], dict[str, Tensor]]
# what the layer makes of a batch, by its number, if its feed-forward network gives these rows [B * T, H]: [B, T, H]
After = Callable[[int, Tensor], Tensor]
# the layer's own feed-forward module, and what the tokens of all batches give it [N, H]: what comes of them [N, H]
FeedForward = Callable[[nn.Module, Tensor, After], Tensor]


class Enough(Exception):
    """Thrown where all was seen that is wanted: what comes after it isn't needed."""


class Parts:
    """A layer and the batches that go through it, part by part.

    All linear maps outside the feed-forward network are in one module, its attention or what is in the place of that;
    the last of them makes what this module gives.
    """

    def __init__(self, layer: nn.Module, feed_forward: str, run: Callable[[int], Tensor], batches: int) -> None:
        """Find the parts.

        Args:
            layer: with weights, but for those of the feed-forward network and what is merged on the way.
            feed_forward: name of its feed-forward module.
            run: runs the layer on a batch, by its number.
            batches: how many there are.
        """
        self.run, self.batches = run, batches
        self.network = layer.get_submodule(feed_forward)
        self.maps = linear_maps(layer, feed_forward)
        [mixer] = {name.rpartition(".")[0] for name in self.maps}
        self.mixer = layer.get_submodule(mixer)
        self.groups, self.given = self._groups()

    def _groups(self) -> tuple[list[Names], int]:
        """Run a batch without the maps: which of them read the same, in their order, and how long a tuple the mixer
        gives, 0 for none."""
        groups: list[list[str]] = []
        read: list[Tensor] = []
        given: list[Any] = []

        def stand_in(name: str, width: int) -> Callable[[Tensor], Tensor]:
            def forward(x: Tensor) -> Tensor:
                if not read or x.data_ptr() != read[-1].data_ptr():
                    groups.append([])
                    read.append(x)
                groups[-1].append(name)
                return x.new_zeros(1).expand(*x.shape[:-1], width)

            return forward

        def end(_: nn.Module, __: Any, output: Any) -> None:
            given.append(output)
            raise Enough

        hook = self.mixer.register_forward_hook(end)
        with ExitStack() as stack, suppress(Enough):
            for name, module in self.maps.items():
                stack.enter_context(_instead(module, stand_in(name, module.out_features)))
            self.run(0)
        hook.remove()
        return [tuple(group) for group in groups], len(given[0]) if isinstance(given[0], tuple) else 0

    def _read(self, module: nn.Module, batch: int) -> Tensor:
        """Run a batch up to a module: what that reads."""
        seen: list[Tensor] = []

        def forward(x: Tensor) -> Tensor:
            seen.append(x)
            raise Enough

        with _instead(module, forward), suppress(Enough):
            self.run(batch)
        return seen[0]

    def attend(self, merge: Merge | None) -> list[Tensor]:
        """Run the mixer on all batches.

        Args:
            merge: gives the maps their weights, as soon as what they read is known; None if they have them.

        Returns:
            What it makes of each batch ``[B, T, H]``.
        """
        *first, last = self.groups

        def put(names: Names, read: Callable[[int], Tensor]) -> None:
            for name, weight in merge(names, read).items() if merge else ():
                self.maps[name].weight.copy_(weight)

        for names in first:
            put(names, functools.partial(self._read, self.maps[names[0]]))
        [name] = last
        made = [self._read(self.maps[name], batch) for batch in range(self.batches)]  # [B, T, in]
        put(last, made.__getitem__)
        for batch in range(self.batches):  # each takes the place of the one before
            made[batch] = self.maps[name](made[batch])
        return made

    def finish(self, attended: list[Tensor], together: FeedForward) -> Iterator[Tensor]:
        """Run what comes after the mixer on all batches.

        Args:
            attended: what `attend` has given; emptied on the way.
            together: stands for the feed-forward network.

        Yields:
            What the layer makes of each batch ``[B, T, H]``.
        """
        at = 0

        def mixer(*_: Any, **__: Any) -> Any:
            return (attended[at], *[None] * (self.given - 1)) if self.given else attended[at]

        def after(batch: int, rows: Tensor) -> Tensor:
            nonlocal at
            at = batch
            with _instead(self.network, lambda x: rows.view_as(x)):
                return self.run(batch)

        with _instead(self.mixer, mixer):
            sizes = [states.shape[:-1].numel() for states in attended]
            read = torch.empty(sum(sizes), attended[0].shape[-1], device=attended[0].device)  # [N, H]
            for at, rows in enumerate(read.split(sizes)):
                rows.copy_(self._read(self.network, at).flatten(0, 1))
            made = together(self.network, read, after).split(sizes)
            del read, rows
            for batch, given in enumerate(made):
                yield after(batch, given)
                attended[batch] = attended[batch][:0]  # lets it go


def linear_maps(layer: nn.Module, feed_forward: str) -> dict[str, nn.Linear]:
    """List the linear maps of a layer outside its feed-forward network, by name.

    Args:
        layer: the layer.
        feed_forward: name of its feed-forward module.
    """
    return {
        name: module
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(feed_forward + ".")
    }


@contextmanager
def _instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Have a module do something else for a while."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
