"""What a model has answered, kept on the disk as it comes: a run that was stopped, or one with more tasks, goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lazymoe.files import absolute, cache, unwritten

AGAIN = "evaluate again: it goes on with what is still to be asked."


class Answers:
    """The answers of one model."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        """Begin with what is known.

        Args:
            known: answers, each by its key.
        """
        self._answers = dict(known)

    @property
    def all(self) -> dict[str, Any]:
        """All answers, by their keys."""
        return dict(self._answers)

    def get(self, key: str) -> Any:
        """Give an answer; None if there is none yet.

        Args:
            key: of what was asked, as `key_of` makes it.
        """
        return self._answers.get(key)

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keep answers.

        Args:
            answers: each by its key; what JSON can hold, and not None.

        Raises:
            OutputError: if they can't be written.
        """
        self._answers |= answers


class Kept(Answers):
    """The answers of one model, on the disk.

    A line for each, which is added whole or, where a power cut leaves half of it, isn't believed. They lie among the
    user's caches and not beside a mixture: its base model and its experts are other mixtures' too.
    """

    def __init__(self, fingerprint: str) -> None:
        """Read what is there.

        Args:
            fingerprint: of the model.
        """
        super().__init__({})
        self._path = answers_folder() / f"{fingerprint}.jsonl"
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))
        for line in whole.splitlines():
            try:
                key, answer = json.loads(line)
            except (ValueError, TypeError):  # it wasn't written by this
                continue
            self._answers[str(key)] = answer

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keep answers; see `Answers`."""
        super().add(answers)
        lines = "".join(json.dumps([key, answer]) + "\n" for key, answer in answers.items())
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab", buffering=0) as f:
                f.write(lines.encode())
                os.fsync(f.fileno())
        except OSError as e:
            raise unwritten(e, self._path, "the evaluation stopped", AGAIN) from None


def answers_folder() -> Path:
    """Give the folder of all answers; it need not exist yet."""
    return absolute(cache() / "answers")


def key_of(*asked: Any) -> str:
    """Give what a question is known by.

    Args:
        asked: all that its answer depends on, but for the model; what JSON can hold.
    """
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
