"""Which machine to rent for an order, how long it takes there, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lazymoe.errors import error, nearest
from lazymoe.hub.jobs import Flavor
from lazymoe.jobs.orders import Load, Order
from lazymoe.planning.duration import Rates
from lazymoe.units import counted, gigabytes, minutes

SETUP = 180.0  # seconds until everything is installed
INSTALLED, CUDA = 3_000_000_000, 9_000_000_000  # bytes of disk that this takes, without and with a GPU's libraries
NETWORK, DISK = 50_000_000.0, 200_000_000.0  # bytes a second, taken to be so: no rented machine was measured
PROCESSOR, GPU = 1e10, 2e12  # floating-point operations a second, of each processor or of a GPU; as these
SPARE = 3  # how much longer than the estimate a job may take
UNKNOWN = 10**15  # bytes of disk of a machine that the user wants and the Hub doesn't tell it of
LEAST = 1800.0  # seconds that it may take in any case
LONG = 12 * 3600.0  # seconds beyond which a faster machine is looked for


@dataclass(frozen=True)
class Offer:
    """A machine for an order.

    Attributes:
        flavor: the machine.
        words: for what is done there.
        disk, memory: bytes that it takes, at most at a time.
        seconds: that it takes, about, from beginning to end.
        timeout: seconds after which it is stopped.
        payer: who is billed.
    """

    flavor: Flavor
    words: str
    disk: int
    memory: int
    seconds: float
    timeout: int
    payer: str

    @property
    def price(self) -> str:
        """What an hour costs."""
        return f"{_dollars(self.flavor.price)} an hour"

    @property
    def cost(self) -> float:
        """Dollars that it costs, about."""
        return self.flavor.price * self.seconds / 3600

    @property
    def most(self) -> float:
        """Dollars that it can cost."""
        return self.flavor.price * self.timeout / 3600

    def to_dict(self) -> dict[str, Any]:
        """Give its fields by name, for programs: times in seconds, money in dollars."""
        return {
            "flavor": self.flavor.name,
            "price_per_hour": self.flavor.price,
            "seconds": self.seconds,
            "cost": self.cost,
            "timeout_seconds": self.timeout,
            "most_cost": self.most,
            "payer": self.payer,
            "disk_bytes": self.disk,
            "memory_bytes": self.memory,
        }

    def __str__(self) -> str:
        """Say what is rented, for how long and at what price."""
        return (
            f"{self.flavor.name} of Hugging Face Jobs ({self.flavor.words}) costs {self.price}, billed to "
            f"{self.payer}. By a rough count {self.words} takes {minutes(self.seconds)} there: {_dollars(self.cost)}. "
            f"It is stopped after {counted(self.timeout // 3600, 'hour')} at the latest: {_dollars(self.most)}."
        )


def make_offer(order: Order, flavors: Sequence[Flavor], wanted: str | None, device: str | None, payer: str) -> Offer:
    """Choose the cheapest machine that has the memory and the disk and takes no more than half a day, else the fastest;
    or hold the one that is wanted against them.

    Args:
        order: what is to be done.
        flavors: the machines, the cheapest first.
        wanted: the name of one; None for any.
        device: where it computes, as `merge` has it: for CUDA only machines with a GPU are taken.
        payer: who is billed.

    Raises:
        LazyMoEError: if there is no such machine, or none that is large enough.
    """
    if wanted is not None and wanted not in (names := [flavor.name for flavor in flavors]):
        raise error("input.flavor", "hf-jobs", f"there is no machine '{wanted}'", nearest(wanted, names))
    asked = [flavor for flavor in flavors if wanted in (None, flavor.name)]
    if device and device.startswith("cuda"):
        asked = [flavor for flavor in asked if flavor.gpu]
    offers, least = [], None
    for flavor in asked:
        installed = CUDA if flavor.gpu else INSTALLED
        disk = max(0, flavor.disk - installed) if flavor.disk or wanted is None else UNKNOWN
        rates = Rates(NETWORK, DISK, GPU if flavor.gpu else PROCESSOR * flavor.processors)
        loads = list(order.loads(disk, flavor.memory, rates))
        fits = next((load for load in loads if load.disk <= disk and load.memory <= flavor.memory), None)
        least = min([*loads, *filter(None, [least])], default=None)
        if fits:
            offers.append(_offer(order, flavor, fits, payer))
    if offers:
        quick = (offer for offer in offers if offer.seconds <= LONG)
        return next(quick, None) or min(offers, key=lambda offer: offer.seconds)
    what = f"{f'{wanted} is not' if wanted else 'no machine there is'} large enough"
    if least:
        what += f": this takes {gigabytes(least.disk + INSTALLED)} of disk and {gigabytes(least.memory)} of memory"
    raise error("hub.no-flavor", "hf-jobs", what, "Take fewer or smaller experts, or a machine of your own.")


def _offer(order: Order, flavor: Flavor, load: Load, payer: str) -> Offer:
    seconds = SETUP + load.seconds
    timeout = 3600 * math.ceil((SPARE * seconds + LEAST) / 3600)
    return Offer(flavor, order.words, load.disk, load.memory, seconds, timeout, payer)


def _dollars(amount: float) -> str:
    return f"${amount:.2f}" if amount >= 0.01 or not amount else "less than $0.01"
