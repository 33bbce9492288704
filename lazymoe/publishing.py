"""A finished mixture onto the Hugging Face Hub: whose token is it, may they write there, the files, then one commit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazymoe.cards.card import card
from lazymoe.errors import error
from lazymoe.files import absolute
from lazymoe.hub.accounts import account, find_token
from lazymoe.hub.client import TOKENS_PAGE
from lazymoe.hub.uploading import Upload
from lazymoe.output.folder import CARD, RECORD, WEIGHTS, open_finished
from lazymoe.progress import Progress, silent


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
        OutputError: if the folder isn't a finished mixture.
        RecipeError: if the recipe in it can't be read.
        HubError: if the token may not write there, the name is taken by something else, or the Hub can't be reached or
            keeps failing.
        LazyMoEError: if the template can't be rendered.
    """
    done = open_finished(absolute(folder))
    text = card(folder, repo, license=license, template=template)
    weights = {path.name: path for path in done.weights}
    if token is None and (found := find_token()):
        token = found[0]
    if not token:
        remedy = f"Make one at {TOKENS_PAGE} and store it with 'hf auth login'."
        raise error("hub.token", "token", "there is none", remedy)
    account(token).check_right(repo)

    upload = Upload(repo, token, private)
    if set(upload.remote) - {".gitattributes", CARD} and RECORD not in upload.remote:
        what = "this repository holds something that LazyMoE didn't make"
        raise error("hub.taken", repo, what, "Choose another name, or empty the repository first.")

    total, passed, sent = sum(path.stat().st_size for path in weights.values()), 0, 0
    progress("upload", passed, total)
    for name, path in weights.items():
        size = path.stat().st_size
        sent += size if upload.send(name, path) else 0
        passed += size
        progress("upload", passed, total)
    small: dict[str, Path | bytes] = {path.relative_to(done.folder).as_posix(): path for path in done.small}
    stale = [name for name in upload.remote if Path(name).match(WEIGHTS) and name not in weights]
    upload.commit(small | {CARD: text.encode()}, stale, "A mixture of experts by LazyMoE")
    return Published(upload.url, sent)
