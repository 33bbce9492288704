"""What the maps of a mixture read while it runs: the mean square of each column says how much that column counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn

Map = tuple[int, str]  # number of its source in the plan, and the name of its weight there
Some = tuple[int, Tensor, Tensor]  # tokens of a batch, by its number: which [n], and which of its choices each is [n]


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
                self.add((0, name), _squares(x), len(x))

    def add(self, which: Map, sums: Tensor, n: int) -> None:
        """Add what a map has read.

        Args:
            which: the map.
            sums: of the squares of rows, float64 ``[in]``.
            n: how many rows.
        """
        self.sums[which] = self.sums[which] + sums if which in self.sums else sums
        self.counts[which] = self.counts.get(which, 0) + n

    def experts(self, prefix: str, module: nn.Module) -> Watch:
        """Give what looks at the maps of a layer's experts.

        Args:
            prefix: of their weights' names: the layer's, and its feed-forward module's.
            module: as the ones that run them.
        """
        return Watch(self, self._counted, prefix, module)


class Watch(NamedTuple):
    """Looks at what the maps of a layer's experts read, see `Inputs.experts`."""

    inputs: Inputs
    counted: Sequence[Tensor]
    prefix: str
    module: nn.Module

    def counting(self, where: Iterable[Some]) -> list[Tensor]:
        """Tell which of the rows of an expert count, bool ``[n]`` each.

        Args:
            where: the rows, some of a batch at a time.
        """
        return [self.counted[batch].flatten()[token] for batch, token, _ in where]

    def look(self, expert: int, counting: Iterable[Tensor], made: Iterator[Tensor]) -> Iterator[Tensor]:
        """Look at what the maps of an expert read.

        Args:
            expert: its number.
            counting: which of its rows count, as `counting` gives it.
            made: what `looked_at` gives of them.

        Yields:
            What comes of the rows.
        """
        for real in counting:
            yield next(made)
            for name, _ in maps_of(self.module):
                self.inputs.add((expert + 1, f"{self.prefix}{name}.weight"), next(made), int(real.sum()))


def looked_at(module: nn.Module, given: Iterable[Tensor], counting: Iterable[Tensor]) -> Iterator[Tensor]:
    """Run a feed-forward module, and look at what its maps read.

    Args:
        module: with the weights of an expert.
        given: rows, some ``[n, H]`` at a time.
        counting: which of them count, bool ``[n]`` each.

    Yields:
        What comes of some ``[n, H]``, and after it of each map the sums of the squares of what counts, float64
        ``[in]``.
    """
    read: dict[str, Tensor] = {}

    def looking(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, x: read.update({name: x[0]})

    for rows, real in zip(given, counting, strict=True):
        hooks = [part.register_forward_pre_hook(looking(name)) for name, part in maps_of(module)]
        try:
            made = run_network(module, rows)
        finally:
            for hook in hooks:
                hook.remove()
        sums = [_squares(read.pop(name)[real]) for name, _ in maps_of(module)]
        yield made
        yield from sums


def run_network(module: nn.Module, rows: Tensor) -> Tensor:
    """Run a feed-forward module by its own forward, whatever stands in for that.

    Args:
        module: with weights, of any dtype.
        rows: what it reads ``[n, H]``.

    Returns:
        What comes of them ``[n, H]``, in the dtype of the rows.
    """
    made: Tensor = type(module).forward(module, rows.to(next(module.parameters()).dtype))
    return made.to(rows.dtype)


def maps_of(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    """List the linear maps of a module, with their names.

    Args:
        module: a feed-forward module.
    """
    return [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]


def _squares(x: Tensor) -> Tensor:
    """Sum up the squares of rows ``[n, in]``: float64 ``[in]``."""
    return x.float().square().sum(0).cpu().double()
