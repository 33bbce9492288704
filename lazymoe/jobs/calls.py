"""What the functions for folders do, on a rented machine and with repositories of the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lazymoe.errors import error
from lazymoe.exporting import LARGEST
from lazymoe.hub.accounts import need_token
from lazymoe.hub.jobs import Job
from lazymoe.jobs.offer import Offer
from lazymoe.jobs.orders import Order, evaluating, gguf, merging
from lazymoe.jobs.renting import rent
from lazymoe.output.folder import EVALUATION
from lazymoe.planning.plan import SHARD_SIZE
from lazymoe.planning.prepared import Where, prepare
from lazymoe.progress import Progress, silent
from lazymoe.publishing import Published, open_repository
from lazymoe.recipe.schema import Recipe
from lazymoe.reporting.measuring import Texts

if TYPE_CHECKING:
    from lazymoe.evaluating.evaluation import Evaluation


def merge_on_jobs(
    recipe: Recipe | str | os.PathLike[str],
    repo: str,
    flavor: str | None = None,
    *,
    agree: Callable[[Offer], bool],
    private: bool = False,
    token: str | None = None,
    seed: int = 0,
    shard_size: int = SHARD_SIZE,
    allow_pickle: bool = False,
    device: str | None = None,
    source: Where = "auto",
    started: Callable[[Job], None] = lambda job: None,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> Published:
    """Make a mixture on a machine of Hugging Face Jobs, rented by the minute, and put it on the Hub.

    The job goes on if this process ends. The same call follows a job that runs already, and starts no second one.

    Args:
        recipe, seed, shard_size, allow_pickle, device, source: as in `lazymoe.merge`; its models must be on the Hub.
        repo, private: as in `lazymoe.merge_to_hub`.
        flavor, agree, token, started, say, progress: as in `lazymoe.jobs.renting.rent`.

    Returns:
        Where it is, and how many bytes of weights were sent.

    Raises:
        LazyMoEError: as `lazymoe.merge_to_hub` and `lazymoe.jobs.renting.rent`.
    """
    prepared = prepare(recipe, shard_size=shard_size, allow_pickle=allow_pickle, source=source)
    order = merging(prepared, repo, private=private, seed=seed, device=device)
    return rent(order, flavor, agree=agree, token=token, started=started, say=say, progress=progress)


def merge_gguf_on_jobs(
    recipe: Recipe | str | os.PathLike[str],
    types: str | Sequence[str],
    repo: str,
    flavor: str | None = None,
    *,
    agree: Callable[[Offer], bool],
    private: bool = False,
    license: str | None = None,
    token: str | None = None,
    imatrix: str | os.PathLike[str] | bool = True,
    seed: int = 0,
    allow_pickle: bool = False,
    device: str | None = None,
    source: Where = "auto",
    largest: int = LARGEST,
    started: Callable[[Job], None] = lambda job: None,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> Published:
    """Make a recipe's mixture as GGUF on a rented machine, and put that on the Hub, as `merge_on_jobs` does.

    Args:
        recipe, types, imatrix, seed, allow_pickle, device, source, largest: as in `lazymoe.merge_to_gguf`.
        license: as in `lazymoe.merge_gguf_to_hub`.
        repo, flavor, agree, private, token, started, say, progress: as in `merge_on_jobs`.

    Returns:
        Where it is, and how many bytes of weights were sent.

    Raises:
        LazyMoEError: as `lazymoe.merge_gguf_to_hub` and `lazymoe.jobs.renting.rent`.
    """
    prepared = prepare(recipe, allow_pickle=allow_pickle, source=source)
    order = gguf(
        prepared, types, repo, private=private, license=license, imatrix=imatrix, seed=seed, device=device,
        largest=largest,
    )  # fmt: skip
    return rent(order, flavor, agree=agree, token=token, started=started, say=say, progress=progress)


def evaluate_on_jobs(
    repo: str,
    tasks: str | Sequence[str] = (),
    flavor: str | None = None,
    *,
    agree: Callable[[Offer], bool],
    limit: int | None = None,
    models: str | Sequence[str] | None = None,
    texts: Texts | None = None,
    token: str | None = None,
    device: str | None = None,
    source: Where = "auto",
    started: Callable[[Job], None] = lambda job: None,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate a mixture that is on the Hub on a rented machine; what comes out is in its card then.

    Args:
        repo: its Hub id, with the right to write there.
        tasks, limit, models, texts, device, source: as in `lazymoe.evaluate`.
        flavor, agree, token, started, say, progress: as in `merge_on_jobs`.

    Returns:
        What came out.

    Raises:
        LazyMoEError: as `lazymoe.evaluate` and `lazymoe.jobs.renting.rent`.
    """
    order = evaluating(repo, tasks, limit=limit, models=models, texts=texts, device=device, source=source)
    rent(order, flavor, agree=agree, token=token, started=started, say=say, progress=progress)
    return evaluation_of(order, token)


def evaluation_of(order: Order, token: str | None = None) -> Evaluation:
    """Read what came out of an evaluation that was ordered.

    Args:
        order: it, when it is done.
        token: by default the one that is found here.

    Raises:
        HubError: if it isn't there, or the Hub can't be reached.
    """
    from lazymoe.evaluating.evaluation import Evaluation

    upload = open_repository(order.repo, token or need_token(), private=False, make=False)
    try:
        return Evaluation.from_dict(upload.read(EVALUATION))
    except ValueError:
        what = f"its {EVALUATION} can't be read"
        raise error("hub.failed", order.repo, what, "Run the same command again.") from None
