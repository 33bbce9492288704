"""A finished mixture onto the Hugging Face Hub: whose token is it, may they write there, the files, then one commit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazymoe.cards.card import render
from lazymoe.cards.naming import without_places
from lazymoe.cards.results import NAME as RESULTS
from lazymoe.cards.results import result_files
from lazymoe.errors import error
from lazymoe.files import absolute
from lazymoe.hub.accounts import account, find_token
from lazymoe.hub.client import LOGIN, TOKENS_PAGE
from lazymoe.hub.uploading import Upload
from lazymoe.output.folder import (
    AGAIN,
    CARD,
    CONFIG,
    EVALUATION,
    PICTURES,
    RECIPE,
    RECORD,
    WEIGHTS,
    Finished,
    check_code,
    open_finished,
    open_weights,
)
from lazymoe.progress import Progress, silent
from lazymoe.recipe.secrets import REMEDY, TOKEN
from lazymoe.reporting.report import illustrate

MENDED = "Run the same merge again: it makes damaged files anew."


@dataclass(frozen=True)
class Published:
    """A mixture on the Hub.

    Attributes:
        url: the address of its page.
        sent: bytes of weights that were sent; the others were there already.
    """

    url: str
    sent: int

    def to_dict(self) -> dict[str, Any]:
        """Give its fields by name, for programs."""
        return {"url": self.url, "sent_bytes": self.sent}

    def __str__(self) -> str:
        return self.url


def publish(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    license: str | None = None,
    template: str | os.PathLike[str] | None = None,
    token: str | None = None,
    progress: Progress = silent,
) -> Published:
    """Put a finished mixture on the Hub, with its card. Again after a change: only what changed is sent.

    Args:
        folder: the mixture's.
        repo: the Hub id, ``user-or-organization/name``; made if it isn't there.
        private: whether a new repository can be seen by its owner only.
        license, template: of the card, see `lazymoe.card`.
        token: with the right to write; by default the one that `lazymoe.hub.accounts.find_token` finds.
        progress: told of the bytes of weights that are there, stage ``upload``.

    Returns:
        Where it is, and how many bytes of weights were sent.

    Raises:
        OutputError: if the folder isn't a finished mixture, is damaged, or has a link where a file should be.
        RecipeError: if the recipe in it can't be read.
        HubError: if the token may not write there, the name is taken by something else, or the Hub can't be reached or
            keeps failing.
        LazyMoEError: if the template can't be rendered, or something that looks like a token would be published.
    """
    done = open_finished(absolute(folder))
    illustrate(done.folder)
    text = render(done, repo, license=license, template=template)
    weights, small = _sound_weights(done), small_files(done)
    upload = open_repository(repo, token, private)
    total, passed, sent = sum(path.stat().st_size for path in weights.values()), 0, 0
    progress("upload", passed, total)
    for name, path in weights.items():
        size = path.stat().st_size
        sent += size if upload.send(name, path) else 0
        passed += size
        progress("upload", passed, total)
    show(upload, small | {CARD: text.encode()}, set(weights))
    return Published(upload.url, sent)


def open_repository(repo: str, token: str | None, private: bool) -> Upload:
    """Open a repository to write to, or make it.

    Args:
        repo, token, private: as in `publish`.

    Raises:
        HubError: as `publish`.
    """
    if token is None and (found := find_token()):
        token = found[0]
    if not token:
        remedy = f"Make one with write access at {TOKENS_PAGE}, and {LOGIN}."
        raise error("hub.token", "token", "there is none", remedy)
    account(token).check_right(repo)
    upload = Upload(repo, token, private)
    if set(upload.remote) - {".gitattributes", CARD} and RECORD not in upload.remote:
        what = "this repository holds something that LazyMoE didn't make"
        raise error("hub.taken", repo, what, "Choose another name, or empty the repository first.")
    return upload


def show(upload: Upload, small: dict[str, bytes], weights: set[str]) -> None:
    """Commit what was sent with the small files, and without weights and results of before.

    Args:
        upload: to the repository.
        small: the small files, name to contents.
        weights: names of the files of weights.

    Raises:
        HubError: as `publish`.
    """
    here, ours = {*weights, *small}, (WEIGHTS, RESULTS, EVALUATION)
    stale = [name for name in upload.remote if name not in here and any(map(Path(name).match, ours))]
    upload.commit(small, stale, "A mixture of experts by LazyMoE")


def _sound_weights(done: Finished) -> dict[str, Path]:
    """List the files of weights, after a look at whether each is what the index says.

    Raises:
        OutputError: if one isn't, or is a link.
    """
    weights = {path.name: path for path in done.weights}
    named: dict[str, set[str]] = {}
    for tensor, file in done.weight_map.items():
        named.setdefault(file, set()).add(tensor)
    for name, path in weights.items():
        _no_link(done, path)
        if set(open_weights(done, path, MENDED)) != named[name]:
            raise error(
                "output.damaged",
                path,
                "its tensors aren't those that the index names",
                "Delete its folder, and merge again.",
            )
    return weights


def small_files(done: Finished) -> dict[str, bytes]:
    """Read the other files. What was looked at is what is sent, even if it changes in between.

    Args:
        done: the mixture.

    Raises:
        OutputError: if one can't be read or is a link, or code isn't LazyMoE's own.
        LazyMoEError: if a text looks like a token.
    """
    check_code(done)
    if not done.host.code and "auto_map" in done.config:
        raise error("output.damaged", done.folder, f"its {CONFIG} names code, and this architecture has none", AGAIN)
    files = {}
    for path in done.small:
        _no_link(done, path)
        name = path.relative_to(done.folder).as_posix()
        try:
            files[name] = path.read_bytes()
        except OSError as e:
            raise error("output.damaged", path, f"it can't be read ({e.strerror})", AGAIN) from None
        if name not in PICTURES and TOKEN.search(files[name].decode(errors="replace")):
            raise error("input.token", path, "in it there is what looks like a Hugging Face token", REMEDY)
    return files | result_files(done) | {RECIPE: without_places(done.recipe).to_yaml().encode()}


def _no_link(done: Finished, path: Path) -> None:
    """Refuse a file that is a link, or that lies behind one in the mixture's folder.

    Raises:
        OutputError: if it is or does.
    """
    for part in (path, *path.parents):
        if part == done.folder:
            return
        if part.is_symlink():
            what = "is a link, and what it points to may not be yours to publish"
            raise error("output.link", part, what, "Put the file itself there.")
