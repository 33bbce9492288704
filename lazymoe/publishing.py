"""A finished mixture onto the Hugging Face Hub: whose token is it, may they write there, the files, then one commit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lazymoe.cards.card import render
from lazymoe.cards.gguf_card import render_gguf
from lazymoe.cards.naming import without_places
from lazymoe.cards.results import NAME as RESULTS
from lazymoe.cards.results import result_files
from lazymoe.checkpoint.gguf_header import inspect
from lazymoe.errors import error
from lazymoe.files import absolute, is_sealed
from lazymoe.hub.accounts import account, need_token
from lazymoe.hub.uploading import Upload
from lazymoe.output.folder import (
    AGAIN,
    CARD,
    CONFIG,
    EVALUATION,
    PICTURES,
    RECIPE,
    RECORD,
    TEXTS,
    WEIGHTS,
    Finished,
    check_code,
    open_finished,
    open_weights,
)
from lazymoe.output.quantized import AGAIN as REWRITE
from lazymoe.output.quantized import (
    ENDING,
    GGUF,
    QUALITY,
    About,
    Quantized,
    is_quantized,
    joined,
    open_quantized,
    seal_when_made,
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
    """Put a finished mixture, or its GGUF files, on the Hub, with a card. Again: only what changed since is sent.

    Args:
        folder: the mixture's, or that of its GGUF files.
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
    if is_quantized(path := absolute(folder)):
        return _publish_gguf(
            open_quantized(path), repo, private, token, {"license": license, "template": template}, progress
        )
    done = open_finished(path)
    illustrate(done.folder)
    weights, small = _sound_weights(done), small_files(done)
    render(done, repo, license=license, template=template)  # before anything is asked of the Hub
    upload = open_repository(repo, token, private)
    text = render(done, repo, license=license, template=template, gguf=gguf_of(upload, done, repo))
    sent = _send(upload, weights, progress)
    show(upload, small | {CARD: text.encode()}, set(weights))
    return Published(upload.url, sent)


def _send(upload: Upload, files: Mapping[str, Path], progress: Progress) -> int:
    """Send large files, by name: how many bytes weren't there yet."""
    total, passed, sent = sum(path.stat().st_size for path in files.values()), 0, 0
    progress("upload", passed, total)
    for name, path in files.items():
        size = path.stat().st_size
        sent += size if upload.send(name, path) else 0
        passed += size
        progress("upload", passed, total)
    return sent


def gguf_of(upload: Upload, done: Finished, repo: str) -> str | None:
    """Find the GGUF files of a mixture on the Hub: their repository, by its name.

    Args:
        upload: to the mixture's repository.
        done: the mixture.
        repo: its Hub id.

    Raises:
        HubError: as `publish`.
    """
    name = f"{repo}{ENDING}"
    return name if _of(upload.read_of(name, GGUF)) == done.record.fingerprint else None


def _of(about: Mapping[str, Any]) -> Any:
    """Give what tells the mixture apart that a `GGUF` file on the Hub is of."""
    record = about.get("record")
    return record.get("fingerprint") if isinstance(record, dict) else None


def _publish_gguf(
    quantized: Quantized, repo: str, private: bool, token: str | None, card: dict[str, Any], progress: Progress
) -> Published:
    """Put the GGUF files of a folder on the Hub. Others of the same mixture that are there already stay.

    Raises:
        LazyMoEError: as `publish`.
    """
    weights = _sound_files(quantized)
    small = {RECIPE: without_places(quantized.mixture.recipe).to_yaml().encode(), **quantized.mixture.texts}
    for name, content in small.items():
        _no_link(quantized.folder, quantized.folder / name)
        _no_tokens(quantized.folder / name, content)
    render_gguf(quantized, repo, **card)  # before anything is asked of the Hub
    upload = open_repository(repo, token, private, GGUF)
    about, quality = quantized.about, quantized.quality
    fingerprint = about.record.fingerprint
    if _of(found := upload.read(GGUF)) == fingerprint:
        about = _beside(about, found, upload.remote)
        here = {kind: quantized.stamps(kind) if kind in quantized.files else None for kind in about.files}
        quality = joined(quality, upload.read(QUALITY), here)
    whole = repo.removesuffix(ENDING)
    original = whole if whole != repo and upload.read_of(whole, RECORD).get("fingerprint") == fingerprint else None
    text = render_gguf(quantized, repo, **card, original=original, listed=about.files, quality=quality)
    small |= {CARD: text.encode(), GGUF: _json(about)} | ({QUALITY: _json(quality)} if quality else {})
    _no_tokens(quantized.folder / GGUF, small[GGUF])
    sent = _send(upload, weights, progress)
    known = {name for listed in about.files.values() for name in listed.names} | weights.keys()
    stale = [name for name in upload.remote if name.endswith(".gguf") and name not in known]
    stale += [name for name in upload.remote if Path(name).match(TEXTS) and name not in small]
    upload.commit(small, stale, "GGUF files of a mixture of experts by LazyMoE")
    return Published(upload.url, sent)


def _json(fields: BaseModel) -> bytes:
    return f"{json.dumps(fields.model_dump(), indent=2)}\n".encode()


def _sound_files(quantized: Quantized) -> dict[str, Path]:
    """List GGUF files and the importance matrix, after a look at whether each is one.

    Raises:
        OutputError: if there are none, or one isn't, or is a link.
    """
    if not quantized.files:
        what = "there are no whole GGUF files"
        raise error("output.unfinished", quantized.folder, what, "Write them with 'lazymoe gguf'.")
    paths = [path for files in quantized.files.values() for path in files]
    for path in (paths := [*paths, *filter(None, [quantized.matrix])]):
        _no_link(quantized.folder, path)
        try:
            inspect(path)
            if not is_sealed(path, seal_when_made(path)):
                raise ValueError("it was changed since it was made")
        except (OSError, ValueError) as e:
            reason = e.strerror if isinstance(e, OSError) else e
            raise error("output.damaged", path, f"it isn't a whole GGUF file ({reason})", REWRITE) from None
    return {path.name: path for path in paths}


def _beside(about: About, found: Mapping[str, Any], remote: Mapping[str, Any]) -> About:
    """Add the types that a repository has of the same mixture, and that aren't here."""
    try:
        there = About.model_validate(found).files
    except ValidationError:
        return about
    kept = {kind: of for kind, of in there.items() if kind not in about.files and set(of.names) <= remote.keys()}
    files = sorted((about.files | kept).items(), key=lambda item: -item[1].nbytes)
    return about.model_copy(update={"files": dict(files)})


def open_repository(repo: str, token: str | None, private: bool, mark: str = RECORD, make: bool = True) -> Upload:
    """Open a repository to write to, or make it.

    Args:
        repo, token, private: as in `publish`.
        mark: the file by which one that LazyMoE made is known.
        make: whether to make it if it isn't there.

    Raises:
        HubError: as `publish`.
    """
    token = token or need_token()
    account(token).check_right(repo)
    upload = Upload(repo, token, private, make)
    if set(upload.remote) - {".gitattributes", CARD} and mark not in upload.remote:
        made = {RECORD: "a mixture in 16 bit", GGUF: "GGUF files"}
        what = next(
            (held for name, held in made.items() if name in upload.remote), "something that LazyMoE didn't make"
        )
        what = f"this repository holds {what}"
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
    here, ours = {*weights, *small}, (WEIGHTS, RESULTS, EVALUATION, TEXTS)
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
        _no_link(done.folder, path)
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
        _no_link(done.folder, path)
        name = path.relative_to(done.folder).as_posix()
        try:
            files[name] = path.read_bytes()
        except OSError as e:
            raise error("output.damaged", path, f"it can't be read ({e.strerror})", AGAIN) from None
        if name not in PICTURES:
            _no_tokens(path, files[name])
    return files | result_files(done) | {RECIPE: without_places(done.recipe).to_yaml().encode()}


def _no_tokens(path: Path, text: bytes) -> None:
    """Refuse a text in which there may be a token.

    Raises:
        LazyMoEError: if there is.
    """
    if TOKEN.search(text.decode(errors="replace")):
        raise error("input.token", path, "in it there is what looks like a Hugging Face token", REMEDY)


def _no_link(folder: Path, path: Path) -> None:
    """Refuse a file in a folder that is a link, or that lies behind one.

    Raises:
        OutputError: if it is or does.
    """
    for part in (path, *path.parents):
        if part == folder:
            return
        if part.is_symlink():
            what = "is a link, and what it points to may not be yours to publish"
            raise error("output.link", part, what, "Put the file itself there.")
