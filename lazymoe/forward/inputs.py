"""What the maps of a mixture read while it runs: the mean square of each column says how much that column counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn

Map = tuple[int, str]  # number of its source in the plan, and the name of its weight there
# told of an expert, by its number, and of the rows [n] of a batch, by its number, that it runs on, while it does
Watch = Callable[[int, int, Tensor], AbstractContextManager[None]]


class Inputs:
    """Sums up the squares of what maps read, of the tokens that count.

    Attributes:
        sums: of each map the sum for each column that it reads, float64 ``[in]``.
        counts: of each map how many tokens that is.
        tokens: of each text how many count, of those that have any.
    """

    def __init__(self, counted: Sequence[Tensor], device: str) -> None:
        """Begin with nothing.

        Args:
            counted: which places of each batch count, bool ``[B, T]``.
            device: where the mixture runs.
        """
        self.sums: dict[Map, Tensor] = {}
        self.counts: dict[Map, int] = {}
        self.tokens = [n for places in counted for n in places.sum(1).tolist() if n]
        self._counted = [places.to(device) for places in counted]

    def body(self, names: Sequence[str], read: Callable[[int], Tensor]) -> None:
        """Look at what maps outside the feed-forward networks read.

        Args:
            names: of the weights of maps that read the same.
            read: gives what they read of a batch, by its number ``[B, T, in]``.
        """
        for batch, counted in enumerate(self._counted):
            x = read(batch)[counted]
            for name in names:
                self._add((0, name), x)

    def experts(self, prefix: str, module: nn.Module) -> Watch:
        """Give what looks at the maps of a layer's experts while these run.

        Args:
            prefix: of their weights' names: the layer's, and its feed-forward module's.
            module: that runs them.
        """

        @contextmanager
        def watch(expert: int, batch: int, rows: Tensor) -> Iterator[None]:
            counted = self._counted[batch].flatten()[rows]

            def looking(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
                return lambda _, given: self._add((expert + 1, name), given[0][counted])

            maps = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
            hooks = [part.register_forward_pre_hook(looking(f"{prefix}{name}.weight")) for name, part in maps]
            try:
                yield
            finally:
                for hook in hooks:
                    hook.remove()

        return watch

    def _add(self, which: Map, x: Tensor) -> None:
        """Add rows ``[n, in]``."""
        own = x.square().sum(0).cpu().double()
        self.sums[which] = self.sums[which] + own if which in self.sums else own
        self.counts[which] = self.counts.get(which, 0) + len(x)
