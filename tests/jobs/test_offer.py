"""Which machine is offered, and at what price."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lazymoe import LazyMoEError, Recipe
from lazymoe.hub.jobs import Flavor
from lazymoe.hub.reading import Repository
from lazymoe.jobs.offer import CUDA, INSTALLED, LEAST, make_offer
from lazymoe.jobs.orders import merging
from lazymoe.planning.prepared import Prepared
from lazymoe.planning.shapes import SHAPES, imagine
from lazymoe.planning.ways import find_ways

GB = 10**9
SMALL = Flavor("small", "2 vCPU", 2, 16 * GB, 20 * GB, False, 0.01)
ROOMY = Flavor("roomy", "8 vCPU", 8, 32 * GB, 200 * GB, False, 0.03)
UNTOLD = Flavor("untold", "8 vCPU", 8, 32 * GB, 0, False, 0.02)
GPU = Flavor("gpu", "4 vCPU", 4, 16 * GB, 200 * GB, True, 0.4)
REPO = "you/my-moe"
ALL = [SMALL, UNTOLD, ROOMY, GPU]


def of_mistrals(recipe: Recipe) -> Prepared:
    """A recipe of models of Mistral's shape, which are on the Hub, so to speak."""
    prepared = imagine(recipe, SHAPES["Mistral-7B"], Path.cwd())
    found = {s.reference: Repository(s.reference.model, s.folder, "", s.weights, {}, None) for s in prepared.sources}
    sources = tuple(replace(source, origin=found[source.reference]) for source in prepared.sources)
    return replace(prepared, sources=sources, plan=replace(prepared.sound_plan, sources=sources))


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return of_mistrals(Recipe.from_file("beyonder-4x7b-v3"))


def chosen(prepared: Prepared, flavors: list[Flavor], wanted: str | None = None, device: str | None = None) -> str:
    return make_offer(merging(prepared, REPO), flavors, wanted, device, "you").flavor.name


def test_the_cheapest_that_has_the_room_is_taken(prepared: Prepared) -> None:
    ways = find_ways(prepared, prepared.sound_plan, Path.cwd(), 0, 0, elsewhere=True)
    [needs] = [way for way in ways if way.to_hub and way.remote]
    small = SMALL._replace(memory=needs.memory, disk=needs.disk + INSTALLED)
    assert chosen(prepared, [small, ROOMY]) == "small"
    assert chosen(prepared, [small._replace(memory=needs.memory - 1), ROOMY]) == "roomy"
    assert chosen(prepared, [small._replace(disk=small.disk - 1), ROOMY]) == "roomy"
    assert chosen(prepared, [UNTOLD, ROOMY]) == "roomy" and chosen(prepared, [UNTOLD, ROOMY], "untold") == "untold"
    assert chosen(prepared, ALL, device="cuda") == "gpu"
    gpu = GPU._replace(memory=needs.memory, disk=needs.disk + CUDA)
    assert chosen(prepared, [gpu]) == "gpu"
    with pytest.raises(LazyMoEError, match=r"no machine there is large enough: this takes .* of disk"):
        chosen(prepared, [gpu._replace(disk=gpu.disk - 1)])
    with pytest.raises(LazyMoEError, match="small is not large enough: this takes"):
        chosen(prepared, [SMALL._replace(memory=GB), ROOMY], "small")
    with pytest.raises(LazyMoEError, match="Did you mean 'roomy'"):
        chosen(prepared, ALL, "romy")


def test_its_price_is_what_the_hub_lists(prepared: Prepared) -> None:
    offer = make_offer(merging(prepared, REPO), [ROOMY], None, None, "you")
    assert offer.cost == pytest.approx(0.03 * offer.seconds / 3600)
    assert offer.timeout % 3600 == 0 and offer.timeout >= offer.seconds + LEAST
    assert offer.most == pytest.approx(0.03 * offer.timeout / 3600) and offer.most >= offer.cost
    assert "$0.03 an hour, billed to you" in str(offer) and f"after {offer.timeout // 3600} hour" in str(offer)
    ways = find_ways(prepared, prepared.sound_plan, Path.cwd(), ROOMY.disk - INSTALLED, ROOMY.memory, elsewhere=True)
    assert (offer.disk, offer.memory) in [(way.disk, way.memory) for way in ways if way.to_hub]
    faster = make_offer(merging(prepared, REPO), [ROOMY._replace(processors=64)], None, None, "you")
    assert faster.seconds <= offer.seconds


def test_the_pages_example_is_what_is_said() -> None:
    page = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text(encoding="utf-8")
    [recipe] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    basic = Flavor("cpu-basic", "2 vCPU, 16 GB of memory, 20 GB of disk", 2, 16 * GB, 20 * GB, False, 0.01)
    order = merging(of_mistrals(Recipe.from_yaml(recipe)), REPO)
    assert f"note: {make_offer(order, [basic], None, None, 'you')} Start it?" in " ".join(page.split())


def test_what_costs_nothing(prepared: Prepared) -> None:
    assert "$0.00 an hour" in str(make_offer(merging(prepared, REPO), [ROOMY._replace(price=0.0)], None, None, "you"))
