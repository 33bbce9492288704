"""The GGUF files of a mixture while they are written, one or several for each type: filled part by part in any order,
each part quantized on its way, or copied where a source has it so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from lazymoe.checkpoint.gguf import Rows, stored_rows
from lazymoe.errors import error
from lazymoe.files import read_bytes
from lazymoe.floats import encode, finite
from lazymoe.output.gguf_rows import RowPen, changed, rows_of
from lazymoe.output.parts import COPY, Looker, Slot
from lazymoe.planning.plan import WORK, Piece, cut
from lazymoe.quantizing.file_types import FILE_TYPES, PLAIN, STARVED
from lazymoe.quantizing.gguf_file import GgufFile, row_bytes
from lazymoe.quantizing.importance import Importance, of_expert
from lazymoe.quantizing.layout import Part
from lazymoe.quantizing.metadata import of_shard, says
from lazymoe.quantizing.native import quantizer, rate
from lazymoe.quantizing.scheme import ROPE_FACTORS, Scheme

CHUNK = 1 << 16  # weights that a thread takes at a time
SHARD = "-{:05}-of-{:05}"  # how llama.cpp numbers the files of a model that is cut


class Export:
    """A mixture on its way into GGUF files, a `writer.Target`: `lay` it out, `open` it, have it filled; `close` in any
    case.

    Attributes:
        files: by type.
        slots, sizes, lacking: as every target has them.
        importance: how much columns count, as far as that is known; looked at whenever something is quantized.
    """

    def __init__(self, scheme: Scheme, slots: Sequence[Slot], importance: Importance) -> None:
        """Work out where each part goes. Nothing is written.

        Args:
            scheme: what goes where, in which types.
            slots: all parts of the mixture's tensors, in order.
            importance: see above.

        Raises:
            LazyMoEError: if nothing here quantizes.
        """
        self.files: dict[str, list[GgufFile]] = {}
        self.slots = list(slots)
        self.sizes = [slot.nbytes for slot in slots]
        self.lacking: dict[int, None] = {}
        self._scheme, self.importance = scheme, importance
        if not scheme.plain:
            quantizer()
        self._threads: ThreadPoolExecutor | None = None
        self._parts = [rows_of(slot, scheme.parts[slot.output.name]) for slot in slots]
        self._keys = [f"{slot.output.name}:{slot.number}" for slot in slots]  # what a file's note calls it
        self._new = set[str]()  # what was written since the last note

    def lay(self, folder: Path, name: str, out: Path, largest: int, made_of: str) -> None:
        """Say where the files go, and work out what each says; `find` looks what is there of them.

        Args:
            folder: with the mixture's config.json and tokenizer; its name is read too.
            name: what the model is called in them, and what their names begin with.
            out: a folder for those that are whole; half-made ones are in a folder of it.
            largest: the most bytes of tensors in one.
            made_of: tells the mixture's weights, and how much their columns count, from others.

        Raises:
            OutputError: if llama.cpp has no such tokenizer, or a file of the mixture can't be read.
        """
        told, shapes = says(self._scheme, folder, name), self._scheme.shapes
        for kind, chosen in self._scheme.types.items():
            groups = cut(shapes, self._scheme.sizes(kind).values(), largest)
            self.files[kind] = []
            for i, group in enumerate(groups):
                end = SHARD.format(i + 1, len(groups)) if len(groups) > 1 else ""
                own = of_shard(told, FILE_TYPES[kind].number, i, len(groups), len(shapes))
                within = {tensor: shapes[tensor] for tensor in group}
                path = out / f"{name}-{kind}{end}.gguf"
                self.files[kind].append(GgufFile(path, out / WORK, own, within, chosen, made_of))

    def only(self, kinds: Sequence[str], slots: Sequence[Slot]) -> Export:
        """Give the files of some types, to be written elsewhere. None must have been opened.

        Args:
            kinds: the types.
            slots: the parts, as they are there.
        """
        types = {kind: self._scheme.types[kind] for kind in kinds}
        some = Export(replace(self._scheme, types=types), slots, dict(self.importance))
        some.files = {kind: self.files[kind] for kind in kinds}
        return some

    def find(self) -> None:
        """Look what is there of the files: all that is believed is read."""
        for file in self._all():
            file.find()
        self._look()

    @property
    def paths(self) -> dict[str, list[Path]]:
        """Where the files are, by type."""
        return {kind: [file.path for file in files] for kind, files in self.files.items()}

    @property
    def whole(self) -> bool:
        """Whether all files are there."""
        return all(file.whole for file in self._all())

    @property
    def sizes_by_type(self) -> dict[str, int]:
        """Bytes of the tensors in the files of each type."""
        return {kind: sum(file.nbytes for file in files) for kind, files in self.files.items()}

    @property
    def room(self) -> int:
        """Bytes of disk that the files still take."""
        return sum(file.nbytes - file.held for file in self._all() if not file.whole)

    def open(self, threads: int) -> None:
        """Begin the files that aren't whole, or go on where they were left.

        Args:
            threads: how many quantize.
        """
        self._threads = ThreadPoolExecutor(threads)
        for file in self._all():
            file.open()
            if self._scheme.factors is not None and ROPE_FACTORS in file.shapes and not file.whole:
                file.put(ROPE_FACTORS, ROPE_FACTORS, 0, self._scheme.factors.view(np.uint8)[None])
        self._look()

    def pen(self, i: int, looker: Looker, moved: Callable[[int], None]) -> RowPen:
        """Set a pen down to write a part, in the mixture's dtype; see `writer.Target`. It looks at the bytes itself."""
        files = [file for file in self._unfinished(i) if not self._copy(i, file)]
        del self.lacking[i]
        self._new.add(self._keys[i])

        def put(part: Part, row: int, values: np.ndarray) -> None:
            """Write rows of a part into files that lack it: float32 ``[n, width]``, from one of its rows on."""
            values = changed(values, part)
            shape = self._scheme.shapes[part.target]
            experts = shape[0] if len(shape) == 3 else 1
            importance = of_expert(self.importance, part.target, part.expert(experts), experts, part.width)
            for file in files:
                if part.target in file.shapes:
                    data = self._encode(part, file.types[part.target], values, importance)
                    file.put(self._keys[i], part.target, part.row + row, data)

        return RowPen(self.slots[i].output.dtype, self._parts[i] if files else (), put, moved)

    def requantized(self, kind: str) -> dict[int, tuple[int, int]]:
        """Count, of each expert that is a quantized GGUF file, by the number of its source, the matrices that are taken
        of it into files of a type, and those of them that are quantized a second time for that.

        Args:
            kind: the file type.
        """
        found: dict[int, tuple[int, int]] = {}
        for i, slot in enumerate(self.slots):
            if isinstance(piece := slot.part, Piece) and piece.source:
                rows = stored_rows(piece.tensor.part(piece.start, piece.elements))
                if rows and rows.kind not in PLAIN:
                    taken, anew = found.get(piece.source, (0, 0))
                    found[piece.source] = taken + 1, anew + (not self.copied(i, self._scheme.types[kind]))
        return found

    def seconds(self, threads: int) -> float:
        """Estimate how long it takes here to quantize all that isn't copied.

        Args:
            threads: how many quantize.
        """
        weights = Counter[str]()
        for chosen in self._scheme.types.values():
            for i, slot in enumerate(self.slots):
                if not self.copied(i, chosen):
                    weights[chosen[self._parts[i][0].target]] += slot.part.elements
        return sum(n / rate(kind) for kind, n in weights.items() if kind not in PLAIN) / threads

    def copied(self, i: int, types: Mapping[str, str]) -> Rows | None:
        """Find the rows of a part where a GGUF file of a source has them as they are wanted; None if it hasn't.

        Args:
            i: number of the part.
            types: of llama.cpp's tensors.
        """
        piece, targets = self.slots[i].part, self._parts[i]
        if not isinstance(piece, Piece) or (piece.noise, piece.scale) != (0, 1):
            return None
        found = stored_rows(piece.tensor.part(piece.start, piece.elements))
        fits = found and [(found.rows, found.kind, True)] == [(t.rows, types[t.target], t.as_it_lies) for t in targets]
        return found if fits else None

    @property
    def copies(self) -> bool:
        """Whether something is copied as a GGUF file of a source has it."""
        return any(self.copied(i, types) for types in self._scheme.types.values() for i in range(len(self.slots)))

    def _copy(self, i: int, file: GgufFile) -> bool:
        """Copy a part into a file as it is, if a source has it so."""
        found = self.copied(i, file.types)
        if found:
            [part] = self._parts[i]
            size = found.lies.nbytes // found.rows
            step = max(1, COPY // size)
            for row in range(0, found.rows, step):
                n = min(step, found.rows - row)
                data = read_bytes(found.lies.path, found.lies.offset + row * size, n * size)
                file.put(self._keys[i], part.target, part.row + row, np.frombuffer(data, np.uint8).reshape(n, size))
        return found is not None

    def keep(self) -> None:
        """See to it that what was written is on the disk, and note it: a rerun goes on from here."""
        for file in self._all():
            file.keep(self._new)
        self._new = set()

    def finish(self) -> None:
        """Give the files their names; all parts are there."""
        for file in self._all():
            file.finish()

    def discard(self) -> None:
        """Remove what is half-made."""
        for file in self._all():
            file.discard()

    def close(self) -> None:
        """Let go of files and threads."""
        for file in self._all():
            file.close()
        if self._threads:
            self._threads.shutdown(cancel_futures=True)

    def _all(self) -> list[GgufFile]:
        return [file for files in self.files.values() for file in files]

    def _look(self) -> None:
        """List the parts that some file lacks."""
        self.lacking = {i: None for i in range(len(self.slots)) if self._unfinished(i)}

    def _unfinished(self, i: int) -> list[GgufFile]:
        """List the files that a part goes into, and that lack it."""
        targets = {part.target for part in self._parts[i]}
        return [f for f in self._all() if not f.whole and self._keys[i] not in f.done and targets & f.shapes.keys()]

    def _encode(self, part: Part, kind: str, values: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
        """Give float32 rows as bytes of a type: ``[n, bytes of a row]``."""
        from gguf import GGMLQuantizationType

        rows, width = values.shape
        if kind in PLAIN:
            with np.errstate(over="ignore"):  # looked at below
                cast = encode(values, kind)
            if not finite(cast, kind):
                what = f"{part.target} has values that {kind} can't hold"
                raise error("input.type", "TYPE", what, "Choose BF16, or a quantized type.")
            return cast.reshape(rows, -1)
        assert self._threads, "open it first"
        quantize, number, step = quantizer(), int(GGMLQuantizationType[kind]), max(1, CHUNK // width)
        out = np.empty((rows, row_bytes(kind, width)), np.uint8)
        if importance is None and kind in STARVED:  # of this tensor nothing is known: all columns count alike
            importance = np.ones(width, np.float32)

        def chunk(start: int) -> None:
            quantize(number, values[start : start + step], out[start : start + step], importance)

        list(self._threads.map(chunk, range(0, rows, step)))
        return out
