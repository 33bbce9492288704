"""Putting files into a repository on the Hub: large ones first, where nobody sees them, then one commit that shows all.

So an upload that breaks off leaves nothing half-made, and the next one sends only what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub import errors as hf
from huggingface_hub.lfs import UploadInfo

from lazymoe.errors import error
from lazymoe.files import readable
from lazymoe.hub.client import About, ask, without_bars
from lazymoe.hub.streaming import Stream, open_stream


class Upload:
    """A repository that is written to.

    Attributes:
        url: the address of its page.
        private: whether only its owner can see it.
        remote: the files that it has, with the SHA-256 of large ones.
        sent: of each large file that `send` was given, its SHA-256.
    """

    def __init__(self, repo: str, token: str, private: bool, make: bool = True) -> None:
        """Find the repository, or make it.

        Args:
            repo: its Hub id.
            token: with the right to write.
            private: whether a new one can be seen by its owner only.
            make: whether to make it if it isn't there; else it has no files, and can't be written to.

        Raises:
            HubError: if the Hub refuses, can't be reached or keeps failing; or if it is public already, though it
                should be private.
        """
        self._api, self._repo, self._about = HfApi(token=token), repo, About(repo, "repository", repo)
        self._operations: list[Any] = []
        self.sent: dict[str, str] = {}
        found = ask(self._about, self._find)
        if found is None and make:
            ask(self._about, lambda: self._api.create_repo(repo, private=private, exist_ok=True))
            found = ask(self._about, lambda: self._api.model_info(repo, files_metadata=True))
        if found and private and found.private is False:
            remedy = "Make it private on its settings page, or rename yours."
            raise error("hub.public", repo, "this repository is public already", remedy)
        self.remote = {s.rfilename: s.lfs.sha256 if s.lfs else None for s in (found.siblings if found else None) or []}
        self.url = f"{self._api.endpoint}/{repo}"

    def _find(self) -> Any:
        """Find the repository with its files; None if there is none yet."""
        try:
            return self._api.model_info(self._repo, files_metadata=True)
        except hf.RepositoryNotFoundError as e:
            if e.response is not None and e.response.status_code == 404:
                return None
            raise

    def read(self, name: str) -> dict[str, Any]:
        """Read a JSON file that the repository has; empty if it has none that can be read.

        Args:
            name: of the file.

        Raises:
            HubError: if the Hub refuses, can't be reached or keeps failing.
        """
        if name not in self.remote:
            return {}
        return readable(Path(ask(self._about, lambda: self._api.hf_hub_download(self._repo, name))))

    def read_of(self, repo: str, name: str) -> dict[str, Any]:
        """Read a JSON file of another repository; empty if there is none that can be read.

        Args:
            repo: its Hub id.
            name: of the file.

        Raises:
            HubError: if the Hub can't be reached or keeps failing.
        """

        def call() -> dict[str, Any]:
            try:
                found = self._api.model_info(repo)
            except hf.RepositoryNotFoundError:
                return {}
            if name not in {s.rfilename for s in found.siblings or []}:
                return {}
            return readable(Path(self._api.hf_hub_download(repo, name, revision=found.sha)))

        with without_bars():
            return ask(About(repo, "repository", repo), call)

    def send(self, name: str, path: Path) -> bool:
        """Send a large file, unless the repository has it.

        Args:
            name: what it is called there.
            path: where it is here.

        Returns:
            Whether it was sent.

        Raises:
            HubError: if the Hub refuses, can't be reached or keeps failing.
        """
        added = CommitOperationAdd(name, path)
        self.sent[name] = added.upload_info.sha256.hex()
        if self.remote.get(name) == self.sent[name]:
            return False
        with without_bars():
            ask(self._about, partial(self._api.preupload_lfs_files, self._repo, [added]))
        self._operations.append(added)
        return True

    def elsewhere(self, path: Path) -> Callable[[], tuple[str, bool]]:
        """Give what sends a large file from another machine, and tells its SHA-256 and whether it was sent.

        Args:
            path: where it is, on that machine; it has the same name in the repository.
        """
        assert isinstance(self._api.token, str)
        return partial(_send, self._repo, self._api.token, path)

    def stream(self, name: str) -> Stream | None:
        """Begin to send a large file of which not all is there yet; None where that can't be done.

        Args:
            name: what it is called there.
        """
        return open_stream(self._api, self._repo, name)

    def recall(self, name: str, sha256: str, size: int) -> bool:
        """Count on a large file that was sent, in a stream or by another process.

        Args:
            name: what it is called there.
            sha256, size: of the file.

        Returns:
            Whether the repository doesn't show it yet.
        """
        self.sent[name] = sha256
        if self.remote.get(name) == sha256:
            return False
        added = CommitOperationAdd(name, b"")
        added.upload_info = UploadInfo(sha256=bytes.fromhex(sha256), size=size, sample=b"")
        added._upload_mode, added._is_uploaded = "lfs", True  # as the client leaves it after a file was sent
        self._operations.append(added)
        return True

    def commit(self, small: Mapping[str, Path | bytes], gone: Iterable[str], message: str) -> None:
        """Show what was sent, with small files, and without those that are gone.

        Args:
            small: the small files, name to path or contents.
            gone: names of files to delete.
            message: of the commit.

        Raises:
            HubError: if the Hub refuses, can't be reached or keeps failing.
        """
        self._operations += [CommitOperationDelete(name) for name in gone]
        self._operations += [CommitOperationAdd(name, content) for name, content in small.items()]
        create = partial(self._api.create_commit, self._repo, self._operations, commit_message=message)
        with without_bars():
            ask(self._about, create)


def _send(repo: str, token: str, path: Path) -> tuple[str, bool]:
    """Send a large file to a repository that is there; see `Upload.elsewhere`."""
    upload = Upload(repo, token, private=False, make=False)
    sent = upload.send(path.name, path)
    return upload.sent[path.name], sent
