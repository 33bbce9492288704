"""How a recipe names a model: a folder, a GGUF file, or a Hub id, with a revision and an adapter if wanted."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lazymoe.errors import Problem, printable

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
GGUF_FILE = re.compile(r"([\w-][\w.-]*/[\w.-]+)/([\w./-]+\.gguf)")  # a repo and a file of it


@dataclass(frozen=True)
class Reference:
    """A model by name: ``path-or-repo[@revision][+adapter]``, or a GGUF file of a repo: ``org/name/file.gguf``.

    An existing path is taken as it stands, even with an ``@`` or a ``+`` in it.
    """

    model: str
    revision: str | None = None
    adapter: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference; whether it names anything is a question for later.

        Args:
            text: as the recipe has it.
        """
        if os.path.exists(cls(text).path):  # also of a name that is too long
            return cls(text)
        model, _, adapter = text.partition("+")
        model, _, revision = model.partition("@")
        in_repo = GGUF_FILE.fullmatch(model)
        if in_repo and not os.path.exists(cls(model).path):
            return cls(in_repo[1], revision or None, adapter or None, in_repo[2])
        return cls(model, revision or None, adapter or None)

    @property
    def path(self) -> Path:
        """Where the model would be, if its name is a path. (`Path.expanduser` fails on a ``~`` that is nobody's.)"""
        return Path(os.path.expanduser(self.model))

    @property
    def short_name(self) -> str:
        """The last part of the model's name; with an adapter, of the adapter's, since many can share a model."""
        if self.adapter:
            return Reference.parse(self.adapter).short_name
        return printable(self.model.partition("@")[0].rstrip("/").rpartition("/")[2])

    def nowhere(self, where: str) -> Problem | None:
        """Say what is wrong with a name that is no path here and can't be one on the Hub; None if it may be either.

        Args:
            where: how messages name the place it was asked for.
        """
        if (self.model and os.path.exists(self.path)) or HUB_ID.fullmatch(self.model):
            return None
        what = f"there is no folder '{self.model}'"
        return Problem("source.not-found", where, what, "Check the path, or use a Hub id such as 'org/name'.")

    def __str__(self) -> str:
        model = f"{self.model}/{self.file}" if self.file else self.model
        revision = f"@{self.revision}" if self.revision else ""
        adapter = f"+{self.adapter}" if self.adapter else ""
        return f"{model}{revision}{adapter}"
