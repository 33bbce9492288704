"""Which tensors of a mixture make which of llama.cpp's: names, and where the rows of each go. From shapes alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lazymoe.architectures.records import LAYER, Config, Host
from lazymoe.quantizing import linear_attention

Shape = tuple[int, ...]

OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.embedding_norm.weight": "token_embd_norm.weight",  # LFM2's last norm
    "lm_head.weight": "output.weight",
}
IN_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "operator_norm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    **{f"self_attn.{part}_proj.{kind}": f"attn_{part}.{kind}" for part in "qkv" for kind in ("weight", "bias")},
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.o_proj.bias": "attn_output.bias",
    "self_attn.out_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.q_layernorm.weight": "attn_q_norm.weight",
    "self_attn.k_layernorm.weight": "attn_k_norm.weight",
    "self_attn.query_layernorm.weight": "attn_q_norm.weight",
    "self_attn.key_layernorm.weight": "attn_k_norm.weight",
    "conv.in_proj.weight": "shortconv.in_proj.weight",
    "conv.conv.weight": "shortconv.conv.weight",
    "conv.out_proj.weight": "shortconv.out_proj.weight",
    "feed_forward.expert_bias": "exp_probs_b.bias",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.moe_statics.e_score_correction_bias": "exp_probs_b.bias",
}
_POST = {"post_attention_layernorm.weight": "post_attention_norm.weight"}
OTHERWISE = {  # names of one host alone
    "glm4_moe": _POST,
    "qwen3_5_moe_text": {**_POST, **linear_attention.NAMES},
}
FLAT = ("conv.conv.weight", "conv1d.weight", "_bias")  # without sizes of 1
# hosts whose queries and keys llama.cpp rotates in pairs of neighbours, where transformers rotates halves of a head
PAIRED = ("mixtral", "granitemoe")
ROTATED = ("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")


class Part(NamedTuple):
    """Rows of a mixture's tensor, and where they go.

    Attributes:
        target: llama.cpp's name of the tensor that they go into.
        row: the first of them there; experts follow one another.
        start: their first element in the mixture's tensor.
        rows: how many.
        width: elements of a row.
        head: rows of a head, if they are to be put in pairs; else 0.
        columns: their columns in the order in which they go there; nothing if that is theirs.
        change: what becomes of the values: ``+1``, ``-exp``, or nothing.
    """

    target: str
    row: int
    start: int
    rows: int
    width: int
    head: int = 0
    columns: tuple[int, ...] = ()
    change: str = ""

    @property
    def as_it_lies(self) -> bool:
        """Whether its rows go there unchanged."""
        return not (self.head or self.columns or self.change)

    def expert(self, experts: int) -> int:
        """Tell whose it is, in a tensor of so many; 0 if that is nobody's."""
        return self.row // self.rows if experts > 1 else 0


class Layout(NamedTuple):
    """The tensors of a GGUF file, name to shape, layer after layer; and the parts of each tensor of the mixture."""

    targets: dict[str, Shape]
    parts: dict[str, list[Part]]


def lay_out(host: Host, config: Config, shapes: Mapping[str, Shape]) -> Layout:
    """Lay out a mixture's tensors.

    Args:
        host: its architecture.
        config: its config.json.
        shapes: of its tensors, by name.

    Raises:
        KeyError: if a tensor is none of that architecture's.
    """
    layers, experts = config["num_hidden_layers"], experts_of(host, config)
    names = dict(OUTER)
    for layer in range(layers):
        prefix, inside = LAYER.format(layer=layer), IN_LAYER | OTHERWISE.get(host.name, {})
        inside = inside | {host.router: "ffn_gate_inp.weight"}
        inside |= {name: f"ffn_{role}_shexp.weight" for name, role in host.shared.items()}
        if host.shared_gate:
            inside[host.shared_gate] = "ffn_gate_inp_shexp.weight"
        names |= {prefix + name: f"blk.{layer}.{own}" for name, own in inside.items()}
    routed = _routed(host, layers, experts)

    targets: dict[str, Shape] = {}
    parts: defaultdict[str, list[Part]] = defaultdict(list)
    for name, shape in shapes.items():
        if name in routed:
            number, roles = routed[name]
            alone = number is not None  # its expert has it alone; else all of them lie in it
            rows, width = shape[-2] // len(roles), shape[-1]
            for i in range(1 if alone else experts):
                for j, role in enumerate(roles):
                    target = f"blk.{name.split('.')[2]}.ffn_{role}_exps.weight"
                    expert = number if number is not None else i
                    start = (i * len(roles) + j) * rows * width
                    parts[name].append(Part(target, expert * rows, start, rows, width))
                    targets[target] = (experts, rows, width)
        else:
            flat = tuple(n for n in shape if n != 1) if name.endswith(FLAT) else shape
            targets[names[name]] = flat
            width = flat[-1] if len(flat) > 1 else 1  # a bias has as many rows as its weight
            head = _head(config) if host.name in PAIRED and names[name].endswith(ROTATED) else 0
            how = head, linear_attention.columns(name, config), _change(host, name)
            for start, row, rows in linear_attention.runs(name, config, math.prod(flat) // width):
                parts[name].append(Part(names[name], row, start * width, rows, width, *how))
    return Layout(dict(_in_order(targets)), dict(parts))


def _change(host: Host, name: str) -> str:
    """Tell what llama.cpp's converter does to a tensor's values."""
    if host.name == "qwen3_5_moe_text" and name.endswith("norm.weight") and "linear_attn" not in name:
        return "+1"  # transformers adds it while it runs
    return "-exp" if name.endswith("A_log") else ""


def experts_of(host: Host, config: Config) -> int:
    """Count a mixture's experts, without shared ones.

    Args:
        host: its architecture.
        config: its config.json.
    """
    keys = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    return next(int(config[key]) for key in keys if config.get(key))


def _routed(host: Host, layers: int, experts: int) -> dict[str, tuple[int | None, list[str]]]:
    """List the tensors of experts: the number of the one whose it is, None if it is all of theirs, and its roles."""
    found: dict[str, tuple[int | None, list[str]]] = {}
    for layer in range(layers):
        for name, words in host.experts.items():
            full = LAYER.format(layer=layer) + name
            if "{expert}" in name:
                found |= {full.format(expert=e): (e, words.split()) for e in range(experts)}
            else:
                found[full] = (None, words.split())
    return found


def _head(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _in_order(targets: Mapping[str, Shape]) -> Iterable[tuple[str, Shape]]:
    """Put tensors into the order in which llama.cpp's quantizer passes them: outside the layers, layer after layer."""

    def key(item: tuple[str, Shape]) -> tuple[int, str]:
        name = item[0]
        return (int(name.split(".")[1]) if name.startswith("blk.") else -1, name)

    return sorted(targets.items(), key=key)
