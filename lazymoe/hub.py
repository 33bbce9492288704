"""The Hugging Face Hub: finding a model, reading ranges of its files, downloading what a merge needs.

Reading only; writing is in `publish`. Both go through the huggingface_hub client, whose errors become messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from huggingface_hub import HfApi, HfFileSystem, snapshot_download
from huggingface_hub import errors as hf

from lazymoe.errors import LazyMoEError, error
from lazymoe.recipe import Reference


def open_model(
    ref: Reference, where: str, patterns: Sequence[str]
) -> tuple[Path, str, dict[str, int], Callable[[str, int, int], bytes]]:
    """Find a model, and bring its small files.

    Returns:
        The folder of the Hub's cache where its files are or will be, its commit, the size of each of its files in
        bytes, and ``read(file, offset, n)``, which reads a range of a file without downloading it.

    Raises:
        LazyMoEError: if there is no such model, no permission, or no network while it isn't in the cache.
    """
    with _explained(ref, where):
        try:
            info = HfApi().model_info(ref.model, revision=ref.revision, files_metadata=True)
        except (hf.HfHubHTTPError, hf.HFValidationError):
            raise
        except Exception:  # no network: each client version has its own exception; the cache may have it all
            folder = Path(snapshot_download(ref.model, revision=ref.revision, local_files_only=True))
            sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
            return folder, folder.name, sizes, _unreachable
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or []}
        folder = Path(snapshot_download(ref.model, revision=info.sha, allow_patterns=list(patterns)))

    def read(file: str, offset: int, length: int) -> bytes:
        with _explained(ref, where):
            return HfFileSystem().cat_file(f"{ref.model}@{info.sha}/{file}", offset, offset + length)

    return folder, str(info.sha), sizes, read


def download(ref: Reference, commit: str | None, files: Sequence[str], where: str) -> None:
    """Bring files of a model into the Hub's cache, going on where an earlier download stopped."""
    with _explained(ref, where):
        snapshot_download(ref.model, revision=commit, allow_patterns=list(files))


def open_dataset(ref: Reference, where: str) -> tuple[str, list[str]]:
    """A data set's commit and the names of its files.

    Raises:
        LazyMoEError: if there is no such data set, no permission, or no network.
    """
    with _explained(ref, where, "data set"):
        info = HfApi().dataset_info(ref.model, revision=ref.revision)
        return str(info.sha), [s.rfilename for s in info.siblings or []]


def open_dataset_file(ref: Reference, commit: str, file: str, where: str) -> IO[bytes]:
    """A file of a data set, open for reading; only the ranges that are read are downloaded."""
    with _explained(ref, where, "data set"):
        return HfFileSystem().open(f"datasets/{ref.model}@{commit}/{file}", "rb")


def _unreachable(file: str, offset: int, length: int) -> bytes:
    raise ValueError("it isn't in the cache and the Hub can't be reached")


@contextmanager
def _explained(ref: Reference, where: str, kind: str = "model") -> Iterator[None]:
    """Turn the client's exceptions into a line that says what to do."""
    try:
        yield
    except LazyMoEError:
        raise
    except hf.GatedRepoError:
        page = f"https://huggingface.co/{'' if kind == 'model' else 'datasets/'}{ref.model}"
        remedy = f"Open {page}, accept its conditions, and log in with 'hf auth login'."
        raise error(where, f"'{ref.model}' is gated", remedy) from None
    except hf.RevisionNotFoundError:
        raise error(where, f"'{ref.model}' has no revision '{ref.revision}'", "Check what follows the '@'.") from None
    except (hf.RepositoryNotFoundError, hf.HFValidationError):
        raise error(
            where,
            f"there is no {'folder and no ' if kind == 'model' else ''}{kind} on the Hub by the name '{ref.model}'",
            "Check the spelling; if it is private, log in with 'hf auth login'.",
        ) from None
    except hf.HfHubHTTPError as e:
        status = e.response.status_code if e.response is not None else "no"
        raise error(
            where, f"the Hub answered '{ref.model}' with status {status}", "Wait a minute and try again."
        ) from None
    except Exception as e:
        raise error(
            where,
            f"'{ref.model}' isn't in the cache and the Hub can't be reached ({type(e).__name__})",
            "Check the network, or name a folder.",
        ) from None
