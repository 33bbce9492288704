"""A layer that is halted where something is decided on all texts together: before its maps, and its network.

Attention and what is in its place run once all the same: what comes of them is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from lazymoe.architectures.watching import linear_maps, width_of

Names = tuple[str, ...]  # of linear maps in a layer that read the same
# such maps, and what gives the input of a batch by its number [B, T, in]: the maps' weights [out, in] by name
Merge = Callable[[Names, Callable[[int], Tensor]], dict[str, Tensor]]
# what the layer makes of a batch, by its number, if its feed-forward network gives these rows [B * T, H]: [B, T, H]
After = Callable[[int, Tensor], Tensor]
# the layer's own feed-forward module, and what the tokens of each batch give it [B * T, H]: what comes of each
FeedForward = Callable[[nn.Module, Sequence[Tensor], After], Iterable[Tensor]]


class Enough(Exception):
    """Thrown where all was seen that is wanted: what comes after it isn't needed."""


class Parts:
    """A layer and the batches that go through it, part by part.

    Attributes:
        groups: the linear maps that run before the feed-forward network, in their order, those that read the same
            together.
    """

    def __init__(
        self,
        layer: nn.Module,
        feed_forward: str,
        run: Callable[[int], Tensor],
        batches: int,
        room: Callable[[], MutableSequence[Tensor]],
    ) -> None:
        """Find the parts; for that a batch runs, with whatever weights the layer has.

        Args:
            layer: it may be without weights.
            feed_forward: name of its feed-forward module.
            run: runs the layer on a batch, by its number.
            batches: how many there are.
            room: begins a list for what there is of each batch inside the layer.
        """
        self.run, self.batches, self.room = run, batches, room
        self.network = layer.get_submodule(feed_forward)
        inside = f"{feed_forward}."
        self.maps = {name: module for name, module in linear_maps(layer).items() if not name.startswith(inside)}
        self.groups: list[Names] = []
        self.mixer: nn.Module | None = None  # attention or what is in its place, if all these maps are in one module
        self.given = 0  # how long a tuple it gives, 0 for none
        self._find(layer)

    def _find(self, layer: nn.Module) -> None:
        """Run a batch without the maps: which of them read the same, and whether the last of them makes what a module
        that has all of them gives."""
        groups: list[list[str]] = []
        read: list[Tensor] = []
        made: list[Tensor] = []
        given: dict[str, Any] = {}

        def stand_in(name: str, width: int) -> Callable[[Tensor], Tensor]:
            def forward(x: Tensor) -> Tensor:
                if not read or x.data_ptr() != read[-1].data_ptr():
                    groups.append([])
                    read.append(x)
                groups[-1].append(name)
                made.append(x.new_zeros(*x.shape[:-1], width))
                return made[-1]

            return forward

        def end(*_: Any) -> Tensor:
            raise Enough

        def note(path: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                given[path] = output

            return hook

        parents = {name.rpartition(".")[0] for name in self.maps}
        hooks = [layer.get_submodule(path).register_forward_hook(note(path)) for path in parents if path]
        with ExitStack() as stack, suppress(Enough):
            for name, module in self.maps.items():
                stack.enter_context(instead(module, stand_in(name, width_of(module))))
            stack.enter_context(instead(self.network, end))
            self.run(0)
        for hook in hooks:
            hook.remove()
        self.groups = [tuple(group) for group in groups]
        if len(owners := {name.rpartition(".")[0] for group in groups for name in group}) == 1 and len(groups[-1]) == 1:
            [owner] = owners
            output = given.get(owner)
            if (output[0] if isinstance(output, tuple) else output) is made[-1]:
                self.mixer = layer.get_submodule(owner)
                self.given = len(output) if isinstance(output, tuple) else 0

    def _read(self, module: nn.Module, batch: int) -> Tensor:
        """Run a batch up to a module: what that reads."""
        seen: list[Tensor] = []

        def forward(x: Tensor) -> Tensor:
            seen.append(x)
            raise Enough

        with instead(module, forward), suppress(Enough):
            self.run(batch)
        return seen[0]

    def attend(self, merge: Merge | None) -> MutableSequence[Tensor] | None:
        """Give the maps their weights, and run the mixer on all batches.

        Args:
            merge: gives the maps their weights, as soon as what they read is known; None if they have them.

        Returns:
            What the mixer makes of each batch ``[B, T, H]``; None if there is no such module.
        """

        def put(names: Names, read: Callable[[int], Tensor]) -> None:
            for name, weight in merge(names, read).items() if merge else ():
                self.maps[name].weight.copy_(weight)

        for names in self.groups[:-1] if self.mixer else self.groups:
            put(names, functools.partial(self._read, self.maps[names[0]]))
        if not self.mixer:
            return None
        [name] = self.groups[-1]
        made = self.room()
        for batch in range(self.batches):
            made.append(self._read(self.maps[name], batch))  # [B, T, in]
        put(self.groups[-1], made.__getitem__)
        for batch in range(self.batches):  # each takes the place of the one before
            made[batch] = self.maps[name](made[batch])
        return made

    def finish(self, attended: MutableSequence[Tensor] | None, together: FeedForward) -> Iterator[Tensor]:
        """Run what comes after the mixer on all batches.

        Args:
            attended: what `attend` has given; emptied on the way.
            together: stands for the feed-forward network.

        Yields:
            What the layer makes of each batch ``[B, T, H]``.
        """
        at = 0

        def mixer(*_: Any, **__: Any) -> Any:
            assert attended
            return (attended[at], *[None] * (self.given - 1)) if self.given else attended[at]

        def after(batch: int, rows: Tensor) -> Tensor:
            nonlocal at
            at = batch
            with instead(self.network, lambda x: rows.view_as(x)):
                return self.run(batch)

        with instead(self.mixer, mixer) if self.mixer else nullcontext():
            read = self.room()
            for at in range(self.batches):
                read.append(self._read(self.network, at).flatten(0, 1))  # [B * T, H]
            made = together(self.network, read, after)
            del read
            for batch, given in enumerate(made):
                yield after(batch, given)
                if attended:
                    attended[batch] = torch.empty(0)  # lets it go


@contextmanager
def instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Have a module do something else for a while.

    Args:
        module: it, changed in place.
        forward: what it does.
    """
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
