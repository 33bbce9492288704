"""A mixture that is on the Hub: found there, brought to where it is evaluated, and shown with what came out."""

from __future__ import annotations

from pathlib import Path

from lazymoe.cards.card import render
from lazymoe.cards.results import NAME as RESULTS
from lazymoe.cards.results import result_files
from lazymoe.checkpoint.opening import fetch, open_source
from lazymoe.errors import error
from lazymoe.hub.reading import find_model
from lazymoe.output.folder import CARD, EVALUATION, RECIPE, RECORD, REPORT, SMALL, TEXTS, open_finished
from lazymoe.progress import Progress
from lazymoe.publishing import gguf_of, open_repository
from lazymoe.recipe.reference import Reference

BESIDE = (*SMALL, TEXTS, REPORT, CARD, "modeling_*.py")  # what a mixture's folder has beside weights and pictures


def find_mixture(repo: str, revision: str | None = None) -> tuple[Path, str]:
    """Find a mixture on the Hub, and bring its small files.

    Args:
        repo: its Hub id.
        revision: a branch, tag or commit; the main branch by default.

    Returns:
        A folder that has them, and the commit.

    Raises:
        HubError: if it isn't there, or the Hub can't be reached or refuses.
        LazyMoEError: if it is no mixture of LazyMoE's.
    """
    found = find_model(repo, revision, repo, BESIDE)
    if not {RECORD, RECIPE} <= found.sizes.keys():
        what = "this repository holds no mixture that LazyMoE made"
        raise error("input.mixture", repo, what, "Name one that 'lazymoe publish', or 'merge --to', has filled.")
    return found.folder, found.commit


def bring_mixture(repo: str, revision: str, progress: Progress) -> tuple[Path, str | None]:
    """Bring a mixture from the Hub.

    Args:
        repo, revision: as in `find_mixture`.
        progress: told of the bytes that are there, stage ``download``.

    Returns:
        A folder that has it, and the licence that its card states.

    Raises:
        LazyMoEError: as `find_mixture`; or if it isn't whole.
    """
    folder, commit = find_mixture(repo, revision)
    source = open_source(Reference(repo, commit), repo)
    fetch([(source, repo)], progress)
    return folder, source.license


def show_evaluation(folder: Path, repo: str, license: str | None) -> None:
    """Show the evaluation of a mixture that is on the Hub: its file, the results as the Hub reads them, the card.

    Args:
        folder: the mixture's, absolute; nothing but its small files is read.
        repo: its Hub id.
        license: of the card, see `lazymoe.card`.

    Raises:
        LazyMoEError: if the repository holds another mixture by now, or as `lazymoe.publish`.
    """
    done, upload = open_finished(folder), open_repository(repo, None, False, make=False)
    if upload.read(RECORD).get("fingerprint") != done.record.fingerprint:
        raise error("hub.taken", repo, "it holds another mixture by now", "Evaluate that one.")
    text, results = render(done, repo, license=license, gguf=gguf_of(upload, done, repo)), result_files(done)
    stale = [name for name in upload.remote if Path(name).match(RESULTS) and name not in results]
    small = {EVALUATION: (folder / EVALUATION).read_bytes(), CARD: text.encode(), **results}
    upload.commit(small, stale, "An evaluation by LazyMoE")
