"""Qwen 3.5's linear attention in llama.cpp: other names, and its value heads in another order.

Several value heads share a key head. transformers has those of a key head one after the other; llama.cpp the first of
each key head, then the second of each, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lazymoe.architectures.records import Config

NAMES = {
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
}
OF_ALL = ("in_proj_qkv.weight", "conv1d.weight")  # rows for queries and keys, then for values
OF_VALUES = ("in_proj_z.weight",)  # rows for values alone
OF_HEADS = ("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias")  # a row for each value head


class Run(NamedTuple):
    """Rows that lie one after the other in both: from this one on, to that one on, so many."""

    start: int
    row: int
    rows: int


def runs(name: str, config: Config, rows: int) -> Iterator[Run]:
    """Say where the rows of a tensor go.

    Args:
        name: of the mixture's tensor.
        config: the mixture's config.json.
        rows: how many it has.
    """
    wide = OF_ALL + OF_VALUES
    if ".linear_attn." not in name or not name.endswith(wide + OF_HEADS):
        yield Run(0, 0, rows)
        return
    size = config["linear_value_head_dim"] if name.endswith(wide) else 1
    before = rows - size * config["linear_num_value_heads"]
    if before:
        yield Run(0, 0, before)
    for row, head in enumerate(order(config)):
        yield Run(before + head * size, before + row * size, size)


def columns(name: str, config: Config) -> tuple[int, ...]:
    """Say which of a tensor's columns comes first, second and so on; nothing if they stay.

    Args:
        name: of the mixture's tensor.
        config: the mixture's config.json.
    """
    if not name.endswith("linear_attn.out_proj.weight"):
        return ()
    size = config["linear_value_head_dim"]
    return tuple(head * size + i for head in order(config) for i in range(size))


def order(config: Config) -> list[int]:
    """List the value heads in llama.cpp's order.

    Args:
        config: the mixture's config.json.
    """
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    return [key * (values // keys) + i for i in range(values // keys) for key in range(keys)]
