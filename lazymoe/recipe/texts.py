"""Prompts that a recipe doesn't write out but names: the texts of a file, or of a data set on the Hub.

Only as much is read as the recipe asks for: the beginning of a file, the first rows of a table. What is too long for a
prompt isn't read to its end.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from lazymoe.errors import LazyMoEError, Problem, error, failure
from lazymoe.recipe.reference import Reference
from lazymoe.recipe.schema import SIDES, Recipe, Texts
from lazymoe.recipe.yaml_text import SURROGATE

FIELDS = ("text", "messages", "conversations", "prompt", "instruction")  # where texts are, if a recipe doesn't say
TURN = ("content", "value", "text")  # where the words of a turn, or of a part of one, are
KINDS = (".txt", ".jsonl", ".json", ".csv", ".parquet")
LONGEST = 1 << 24  # letters of one text, with what is around it in its row; a whole document has fewer
MOST = 1 << 26  # letters of all texts that are taken of a file, and of a .json file as a whole
ROWS = 16  # of a table that are read at a time
csv.field_size_limit(LONGEST)


def read_prompts(recipe: Recipe) -> tuple[Recipe, Recipe, dict[Texts, list[str]]]:
    """Read every file and data set of prompts that a recipe names, once.

    Args:
        recipe: that names them.

    Returns:
        The recipe with its data sets at their commits, so that it names the same texts for ever; the recipe with the
        texts themselves in place of their names; and the texts that were taken of each file on this machine.

    Raises:
        LazyMoEError: with every one that can't be read; a RecipeError or HubError if all are of that kind.
    """
    problems: list[Problem] = []
    pinned, written = [], []
    taken: dict[Texts, list[str]] = {}
    for i, expert in enumerate(recipe.every_expert):
        names: dict[str, list[str | Texts]] = {}
        texts: dict[str, list[str]] = {}
        for side in SIDES:
            prompts: list[str | Texts] | None = getattr(expert, side)
            if prompts is None:
                continue
            names[side], texts[side] = [], []
            for prompt in prompts:
                try:
                    name, found = _read(prompt, recipe.place(i, side), recipe.origin.folder)
                except LazyMoEError as e:
                    problems += e.problems
                else:
                    names[side].append(name)
                    texts[side] += found
                    taken |= {name: found} if isinstance(name, Texts) and not name.dataset else {}
        pinned.append(expert.model_copy(update=names))
        written.append(expert.model_copy(update=texts))
    if problems:
        raise failure(problems)
    return recipe.with_experts(pinned), recipe.with_experts(written), taken


def read_file(path: Path, where: str) -> list[str]:
    """Read the texts of a file, as many as a recipe takes where it doesn't say.

    Args:
        path: of the file.
        where: how messages name the place it was asked for.

    Raises:
        LazyMoEError: if it can't be read, or has none.
    """
    return _read(Texts(file=str(path)), where, None)[1]


def _read(prompt: str | Texts, where: str, folder: Path | None) -> tuple[str | Texts, list[str]]:
    """Read a prompt, whose file is looked for in the recipe's folder first: as it is kept, and its texts."""
    if isinstance(prompt, str):
        return prompt, [prompt]
    place = f"{where}, {prompt.dataset or prompt.file}"
    file = os.path.expanduser(prompt.file or "")
    if folder and folder != Path() and not prompt.dataset and not os.path.isabs(file) and os.path.exists(folder / file):
        prompt = prompt.model_copy(update={"file": str(folder / file)})  # which the mixture's own recipe names as well
    try:
        prompt, name, opened = _open(prompt, place)
        texts = _taken(filter(str.strip, _texts(name, opened, prompt, place)), prompt.limit, place)
    except (OSError, ValueError, RecursionError, csv.Error) as e:
        what = f"it can't be read ({getattr(e, 'strerror', None) or str(e) or type(e).__name__})"
        remedy = "Check the path, and that the file is what its name says."
        raise error("recipe.texts-unreadable", place, what, remedy) from None
    if not texts:
        raise error("recipe.texts-empty", place, "there is no text in it", "Name another file or field.")
    return prompt, texts


def _taken(texts: Iterator[str], limit: int, where: str) -> list[str]:
    """Take the first texts, if together they aren't too long."""
    taken: list[str] = []
    letters = 0
    for text in itertools.islice(texts, limit):
        letters += len(text)
        if letters > MOST:
            what = f"its first {len(taken) + 1} texts have more than {MOST >> 20} million letters"
            raise error("recipe.texts-long", where, what, f"Set 'limit' to {max(1, len(taken))}, or shorten them.")
        taken.append(text)
    return taken


def _open(prompt: Texts, where: str) -> tuple[Texts, str, IO[bytes]]:
    """Open a prompt's file: the prompt at its commit, the file's name, and the file."""
    if not prompt.dataset:
        path = Path(os.path.expanduser(prompt.file or ""))
        return prompt, path.name, open(path, "rb")
    from lazymoe.hub.reading import open_dataset, open_dataset_file

    reference = Reference.parse(prompt.dataset)
    commit, files = open_dataset(reference.model, reference.revision, where)
    tables = sorted((f for f in files if f.endswith(KINDS)), key=lambda f: ("train" not in f, f))
    if not tables or prompt.file not in (None, *files):
        what, known = f"it has no file {prompt.file or 'of texts'}", ", ".join(files[:8])
        raise error("recipe.texts-unreadable", where, what, f"It has: {known}.")
    name = prompt.file or tables[0]
    pinned = prompt.model_copy(update={"dataset": str(Reference(reference.model, commit))})
    return pinned, name, open_dataset_file(reference.model, commit, name, where)


def _texts(name: str, opened: IO[bytes], prompt: Texts, where: str) -> Iterator[str]:
    """Yield all texts of a file, one after the other."""
    with opened as binary:
        if not name.endswith(KINDS):
            what = f"'{name}' is none of {', '.join(KINDS)}"
            raise error("recipe.texts-unreadable", where, what, "Convert it to one of these.")
        if name.endswith(".parquet"):
            yield from _parquet(binary, prompt, where)
            return
        lines = _Lines(io.TextIOWrapper(binary, encoding="utf-8-sig", newline=""), where)
        if name.endswith(".txt"):
            yield from _paragraphs(lines)
        elif name.endswith(".csv"):
            for row in csv.DictReader(lines):
                lines.restart()
                yield _field(row, prompt, where)
        elif name.endswith(".jsonl"):
            for line in lines:
                lines.restart()
                if line.strip():
                    yield _field(json.loads(line), prompt, where)
        else:
            rows = json.loads(lines.whole())
            yield from (_field(row, prompt, where) for row in (rows if isinstance(rows, list) else [rows]))


class _Lines:
    """The lines of a file, with their ends, as long as no text in them is too long."""

    def __init__(self, file: IO[str], where: str) -> None:
        self._file, self._where = file, where
        self._number = self._letters = 0  # lines read, and letters since a text began

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(LONGEST + 1 - self._letters):
            self._number += 1
            self._letters += len(line)
            if self._letters > LONGEST:
                what = f"the text that line {self._number} belongs to has more than {LONGEST >> 20} million letters"
                raise error("recipe.texts-long", self._where, what, "Cut it into shorter ones, or take it out.")
            yield line

    def restart(self) -> None:
        """Begin to count anew: the next line is another text's."""
        self._letters = 0

    def whole(self) -> str:
        """Read the file to its end, if that isn't too far."""
        text = self._file.read(MOST + 1)
        if len(text) > MOST:
            what = f"the file has more than {MOST >> 20} million letters, too many for a .json file"
            raise error("recipe.texts-long", self._where, what, "Save it as .jsonl: an object a line.")
        return text


def _paragraphs(lines: _Lines) -> Iterator[str]:
    """Yield what lies between blank lines."""
    paragraph = io.StringIO()
    for line in itertools.chain(lines, [""]):
        if line.strip():
            paragraph.write(line)
            continue
        lines.restart()
        if text := paragraph.getvalue().strip():
            yield text
            paragraph = io.StringIO()


def _parquet(binary: IO[bytes], prompt: Texts, where: str) -> Iterator[str]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        what = "parquet files need the package pyarrow"
        raise error("recipe.texts-unreadable", where, what, "Run: pip install pyarrow") from None
    table = ParquetFile(binary, buffer_size=1 << 20, pre_buffer=False)  # page by page
    columns = [name for name in _wanted(prompt) if name in table.schema_arrow.names]
    if not columns:
        raise _no_field(prompt, table.schema_arrow.names, where)
    for i in range(table.num_row_groups):
        group = table.metadata.row_group(i)
        if group.total_byte_size > LONGEST * max(1, group.num_rows):
            what = f"its rows have more than {LONGEST >> 20} million letters each"
            raise error("recipe.texts-long", where, what, "Cut them into shorter ones.")
        for rows in table.iter_batches(batch_size=min(prompt.limit, ROWS), row_groups=[i], columns=columns):
            yield from (_field(row, prompt, where) for row in rows.to_pylist())


def _wanted(prompt: Texts) -> tuple[str, ...]:
    return (prompt.field,) if prompt.field else FIELDS


def _field(row: Any, prompt: Texts, where: str) -> str:
    """Find the text of a row, which is an object with fields or itself a string; blank where its field is null."""
    found: str | None = None
    if isinstance(row, str):
        found = row
    elif isinstance(row, dict) and (values := [row[name] for name in _wanted(prompt) if name in row]):
        found = _words(next((value for value in values if value is not None), None))
    if found is None:
        raise _no_field(prompt, row if isinstance(row, dict) else [], where)
    if SURROGATE.search(found):  # half a character, where a text was cut
        found = found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return found


def _words(value: Any) -> str | None:
    """Gather the words of a field: a text, a list of texts, or a chat, whose turns are joined by line breaks.

    A turn is OpenAI's, ``{role, content}`` with text or a list of parts as content, or ShareGPT's, ``{from, value}``.

    Returns:
        The words; None if it is something else.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list):
        parts = [_words(part) for part in value]
        return None if None in parts else "\n".join(filter(None, parts))
    if isinstance(value, dict) and (words := [value[key] for key in TURN if key in value]):
        return _words(next((word for word in words if word is not None), None))
    return "" if isinstance(value, dict) and "type" in value else None  # a picture, a call of a tool


def _no_field(prompt: Texts, fields: Iterable[str], where: str) -> LazyMoEError:
    known = ", ".join(map(str, fields)) or "none"
    what = f"it has no text in a field '{prompt.field or FIELDS[0]}'"
    return error("recipe.texts-field", where, what, f"Set 'field' to one of its fields: {known}.")
