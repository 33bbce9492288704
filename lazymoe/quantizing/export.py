"""The files of a mixture, one for each type, filled from one reading of its weights: tensors are given in any order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lazymoe.architectures.records import Config, Host
from lazymoe.checkpoint.source import CARD, GENERATION
from lazymoe.checkpoint.tensors import TensorInfo
from lazymoe.errors import error
from lazymoe.floats import encode, finite
from lazymoe.planning.plan import cut
from lazymoe.quantizing.description import add_description, architecture_of, rope_factors
from lazymoe.quantizing.file_types import FILE_TYPES, PLAIN, Model, choose, starved
from lazymoe.quantizing.gguf_file import GgufFile, row_bytes, tensor_bytes
from lazymoe.quantizing.importance import Importance, of_expert
from lazymoe.quantizing.layout import Part, Shape, experts_of, lay_out
from lazymoe.quantizing.native import Quantize, quantizer
from lazymoe.quantizing.vocabulary import add_vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

BLOCK = 1 << 22  # weights that are in memory at a time
CHUNK = 1 << 16  # and those that a thread takes
KEPT = 1 << 26  # weights after which the disk is waited for, and what is done is noted
SHARD = "-{:05}-of-{:05}"  # how llama.cpp numbers the files of a model that is cut
ROPE_FACTORS = "rope_freqs.weight"


class Export:
    """A mixture on its way into GGUF files: `open`, `give` every tensor, `finish`; `close` in any case.

    Attributes:
        files: by type.
        importance: how much columns count, as far as that is known; of a tensor before it is given.
    """

    def __init__(
        self,
        folder: Path,
        host: Host,
        config: Config,
        shapes: Mapping[str, Shape],
        types: Sequence[str],
        weighted: bool,
    ) -> None:
        """Work out what goes where. Nothing is written.

        Args:
            folder: with config.json and tokenizer.
            host: the mixture's architecture.
            config: its config.json.
            shapes: of its tensors, by name.
            types: of files, as `FILE_TYPES` has them.
            weighted: whether there will be `importance`.

        Raises:
            OutputError: if llama.cpp has no such model.
            LazyMoEError: if a type is no good without importance, or nothing here quantizes.
        """
        self.files: dict[str, list[GgufFile]] = {}
        self.importance: Importance = {}
        self._folder, self._host, self._config = folder, host, config
        self._architecture = architecture_of(host, config, folder)
        self._shapes, self._parts = lay_out(host, config, shapes)
        self._factors = rope_factors(config)
        if self._factors is not None:
            self._shapes[ROPE_FACTORS] = self._factors.shape
        attends = "blk.0.attn_k.weight" in self._shapes
        model = Model(
            config["num_hidden_layers"], experts_of(host, config), config["num_attention_heads"],
            config["num_key_value_heads"] * attends, self._architecture.name, weighted,
        )  # fmt: skip
        self._types = {name: choose(name, self._shapes, model) for name in types}
        for name, chosen in self._types.items():
            if not weighted and starved(name, chosen):
                remedy = "Give one with --imatrix FILE, or choose a larger type."
                raise error("input.type", "TYPE", f"{name} is no good without an importance matrix", remedy)
        plain = all(kind in PLAIN for chosen in self._types.values() for kind in chosen.values())
        self._quantize: Quantize | None = None if plain else quantizer()
        self._threads: ThreadPoolExecutor | None = None
        self._new, self._unkept = set[str](), 0  # what was given since the last note, and its weights

    def lay(self, name: str, out: Path, partial: Path, largest: int, made_of: str) -> None:
        """Say where the files go, and work out what each says.

        Args:
            name: what the model is called in them, and what their names begin with.
            out: a folder for those that are whole.
            partial: one on the same disk for those that are half-made.
            largest: the most bytes of tensors in one.
            made_of: tells the mixture's weights, and how much their columns count, from others.

        Raises:
            OutputError: if llama.cpp has no such tokenizer, or a file of the mixture can't be read.
        """
        says = self._says(name)
        for kind, chosen in self._types.items():
            sizes = [tensor_bytes(chosen[tensor], shape) for tensor, shape in self._shapes.items()]
            groups = cut(self._shapes, sizes, largest)
            self.files[kind] = []
            for i, group in enumerate(groups):
                end = SHARD.format(i + 1, len(groups)) if len(groups) > 1 else ""
                own = _of_shard(says, FILE_TYPES[kind].number, i, len(groups), len(self._shapes))
                shapes = {tensor: self._shapes[tensor] for tensor in group}
                path = out / f"{name}-{kind}{end}.gguf"
                self.files[kind].append(GgufFile(path, partial, own, shapes, chosen, made_of))

    def open(self, threads: int) -> None:
        """Begin the files that aren't whole, or go on where they were left.

        Args:
            threads: how many quantize.
        """
        self._threads = ThreadPoolExecutor(threads)
        for file in self._all():
            if not file.whole:
                file.open()
        if self._factors is not None:
            for file in self._unfinished(ROPE_FACTORS, ROPE_FACTORS):
                file.put(ROPE_FACTORS, 0, self._factors.view(np.uint8)[None])

    def wants(self, name: str) -> bool:
        """Tell whether some file still lacks a tensor of the mixture.

        Args:
            name: the tensor's.
        """
        return any(self._unfinished(part.target, name) for part in self._parts[name])

    def give(self, name: str, tensor: TensorInfo) -> None:
        """Write a tensor of the mixture into every file that lacks it.

        Args:
            name: that the mixture has for it.
            tensor: what reads it.

        Raises:
            LazyMoEError: if it has values that a type can't hold.
            OSError: if a file can't be read or written.
        """
        for part in self._parts[name]:
            if files := self._unfinished(part.target, name):
                self._write(part, tensor, files)
        self._new.add(name)
        self._unkept += tensor.elements
        if self._unkept > KEPT:
            self.keep()

    def keep(self) -> None:
        """See to it that what was given is on the disk, and note it: a rerun goes on from here."""
        for file in self._all():
            file.keep(self._new)
        self._new, self._unkept = set(), 0

    def finish(self) -> None:
        """Give the files their names; every tensor was given."""
        for file in self._all():
            file.finish()

    def close(self) -> None:
        """Let go of files and threads."""
        for file in self._all():
            file.close()
        if self._threads:
            self._threads.shutdown(cancel_futures=True)

    def _all(self) -> list[GgufFile]:
        return [file for files in self.files.values() for file in files]

    def _unfinished(self, target: str, name: str) -> list[GgufFile]:
        """List the files that one of llama.cpp's tensors is in, and that lack this one of the mixture's."""
        return [file for file in self._all() if target in file.shapes and file.opened and name not in file.done]

    def _says(self, title: str) -> GGUFWriter:
        """Work out what all files say of the mixture."""
        from gguf import GGUFWriter, Metadata, size_label

        says = GGUFWriter(None, self._architecture.name)
        experts = experts_of(self._host, self._config)
        sizes = {name: math.prod(shape) for name, shape in self._shapes.items()}
        routed = sum(size for name, size in sizes.items() if "_exps." in name)
        shared = sum(sizes.values()) - routed
        try:
            metadata = Metadata.load(None, self._folder, title)  # of README.md and generation_config.json
        except Exception as e:  # whatever what a user put there makes the package raise
            what = (
                f"its {CARD} or {GENERATION} can't be read ({str(e).splitlines()[0] if str(e) else type(e).__name__})"
            )
            raise error("output.damaged", self._folder, what, "Mend it, or delete it.") from None
        metadata.size_label = size_label(routed + shared, shared, routed // experts, experts)  # such as 4x1.1B
        says.add_type("model")
        metadata.set_gguf_meta_model(says)
        add_description(says, self._architecture, self._host, self._config)
        add_vocabulary(says, self._folder, self._shapes["token_embd.weight"][0])
        return says

    def _write(self, part: Part, tensor: TensorInfo, files: Sequence[GgufFile]) -> None:
        """Write rows of a tensor into files, a block at a time."""
        step = max(1, BLOCK // part.width)
        step = max(part.head, step - step % part.head) if part.head else step  # a head's rows stay together
        shape = self._shapes[part.target]
        experts, rows = (shape[0], part.rows) if len(shape) == 3 else (1, part.rows)
        importance = of_expert(self.importance, part.target, part.row // rows, experts, part.width)
        for start in range(0, part.rows, step):
            n = min(step, part.rows - start)
            values = tensor.part(part.start + start * part.width, n * part.width).floats().reshape(n, part.width)
            if part.head:
                values = _paired(values, part.head)
            for file in files:
                file.put(part.target, part.row + start, self._encode(part, file.types[part.target], values, importance))

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
        assert self._quantize and self._threads, "open it first"
        quantize, number, step = self._quantize, int(GGMLQuantizationType[kind]), max(1, CHUNK // width)
        out = np.empty((rows, row_bytes(kind, width)), np.uint8)

        def chunk(start: int) -> None:
            quantize(number, values[start : start + step], out[start : start + step], importance)

        list(self._threads.map(chunk, range(0, rows, step)))
        return out


def _paired(values: np.ndarray, head: int) -> np.ndarray:
    """Put the rows of each head in pairs: the first of its first half, the first of its second half, and so on."""
    rows, width = values.shape
    halves = values.reshape(rows // head, 2, head // 2, width)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, width))


def _of_shard(says: GGUFWriter, file_type: int, number: int, shards: int, tensors: int) -> GGUFWriter:
    """Make what one file says: the first of several says all, the others only which they are."""
    from gguf import GGML_QUANT_VERSION, GGUFWriter

    own = GGUFWriter(None, says.arch)
    if number == 0:
        own.kv_data[0] |= says.kv_data[0]
        own.add_quantization_version(GGML_QUANT_VERSION)
        own.add_file_type(file_type)
    if shards > 1:
        own.add_uint16("split.no", number)
        own.add_uint16("split.count", shards)
        own.add_int32("split.tensors.count", tensors)
    return own
