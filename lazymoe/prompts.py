"""Prompts that a recipe doesn't write out but names: the texts of a file, or of a data set on the Hub.

Only as much is read as the recipe asks for: the beginning of a file, the first rows of a table.
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

from lazymoe.errors import LazyMoEError, Problem, error
from lazymoe.recipe import Recipe, Reference, Texts

KINDS = (".txt", ".jsonl", ".json", ".csv", ".parquet")
csv.field_size_limit(1 << 24)  # a column of whole documents


def read_prompts(recipe: Recipe) -> Recipe:
    """The recipe with every file and data set of prompts replaced by its texts.

    Raises:
        LazyMoEError: with every one that can't be read.
    """
    problems: list[Problem] = []
    experts = []
    for i, expert in enumerate(recipe.every_expert):
        written: dict[str, list[str]] = {}
        for side in ("positive_prompts", "negative_prompts"):
            try:
                written[side] = list(_written(getattr(expert, side) or [], recipe.place(i, side)))
            except LazyMoEError as e:
                problems += e.problems
        named = {side: texts for side, texts in written.items() if getattr(expert, side) is not None}
        experts.append(expert.model_copy(update=named))
    if problems:
        raise LazyMoEError(problems)
    return recipe.with_experts(experts)


def pin(recipe: Recipe) -> Recipe:
    """The recipe with every data set of prompts at its commit, so that it names the same texts for ever."""

    def pinned(prompt: str | Texts) -> str | Texts:
        if isinstance(prompt, str) or not prompt.dataset:
            return prompt
        from lazymoe import hub

        reference = Reference.parse(prompt.dataset)
        commit = hub.open_dataset(reference, prompt.dataset)[0]
        return prompt.model_copy(update={"dataset": str(Reference(reference.model, commit))})

    sides = ("positive_prompts", "negative_prompts")
    experts = [
        e.model_copy(update={side: [pinned(p) for p in getattr(e, side)] for side in sides if getattr(e, side)})
        for e in recipe.every_expert
    ]
    return recipe.with_experts(experts)


def _written(prompts: Iterable[str | Texts], where: str) -> Iterator[str]:
    for prompt in prompts:
        if isinstance(prompt, str):
            yield prompt
            continue
        place = f"{where}, {prompt.dataset or prompt.file}"
        try:
            texts = list(itertools.islice(filter(str.strip, _texts(prompt, place)), prompt.limit))
        except (OSError, ValueError, csv.Error) as e:
            what = f"it can't be read ({getattr(e, 'strerror', None) or str(e) or type(e).__name__})"
            raise error(place, what, "Check the path, and that the file is what its name says.") from None
        if not texts:
            raise error(place, "there is no text in it", "Name another file or field.")
        yield from texts


def _texts(prompt: Texts, where: str) -> Iterator[str]:
    """All texts of a file, one after the other."""
    name, opened = _open(prompt, where)
    if not name.endswith(KINDS):
        opened.close()
        raise error(where, f"'{name}' is none of {', '.join(KINDS)}", "Convert it to one of these.")
    with opened as binary:
        if name.endswith(".parquet"):
            yield from _parquet(binary, prompt, where)
            return
        text = io.TextIOWrapper(binary, encoding="utf-8", newline="")
        if name.endswith(".txt"):
            for filled, lines in itertools.groupby(text, key=lambda line: bool(line.strip())):
                if filled:
                    yield "".join(lines).strip()
        elif name.endswith(".csv"):
            yield from (_field(row, prompt, where) for row in csv.DictReader(text))
        elif name.endswith(".jsonl"):
            yield from (_field(json.loads(line), prompt, where) for line in text if line.strip())
        else:
            rows = json.load(text)
            yield from (_field(row, prompt, where) for row in (rows if isinstance(rows, list) else [rows]))


def _open(prompt: Texts, where: str) -> tuple[str, IO[bytes]]:
    if prompt.dataset:
        from lazymoe import hub

        commit, files = hub.open_dataset(Reference.parse(prompt.dataset), where)
        tables = sorted((f for f in files if f.endswith(KINDS)), key=lambda f: ("train" not in f, f))
        if not tables or prompt.file not in (None, *files):
            raise error(where, f"it has no file {prompt.file or 'of texts'}", f"It has: {', '.join(files[:8])}.")
        name = prompt.file or tables[0]
        return name, hub.open_dataset_file(Reference.parse(prompt.dataset), commit, name, where)
    path = Path(os.path.expanduser(prompt.file or ""))
    return path.name, open(path, "rb")


def _parquet(binary: IO[bytes], prompt: Texts, where: str) -> Iterator[str]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise error(where, "parquet files need the package pyarrow", "Run: pip install pyarrow") from None
    table = ParquetFile(binary)
    if prompt.field not in table.schema_arrow.names:
        raise _no_field(prompt, table.schema_arrow.names, where)
    for rows in table.iter_batches(batch_size=prompt.limit, columns=[prompt.field]):
        yield from (str(value) for value in rows.column(0).to_pylist() if value is not None)


def _field(row: Any, prompt: Texts, where: str) -> str:
    """The text of a row, which is an object with fields or itself a string."""
    if isinstance(row, str):
        return row
    if not isinstance(row, dict) or not isinstance(row.get(prompt.field), str):
        raise _no_field(prompt, row if isinstance(row, dict) else [], where)
    return str(row[prompt.field])


def _no_field(prompt: Texts, fields: Iterable[str], where: str) -> LazyMoEError:
    known = ", ".join(map(str, fields)) or "none"
    return error(where, f"it has no text in a field '{prompt.field}'", f"Set 'field' to one of its fields: {known}.")
