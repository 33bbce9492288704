"""What lies in old or trained-on checkpoints beside the model, and no model of its kind reads: buffers that are worked
out anew, and heads for other tasks than the next token."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lazymoe.architectures.registry import dense_of
from lazymoe.checkpoint.tensors import TensorInfo

LEFTOVER = re.compile(
    r"(?:.+\.)?rotary(?:_pos)?_emb\..+"  # inv_freq, cos_cached ...
    r"|(?:.+\.)?position_ids"
    r"|.+\.(?:attn|attention|self_attn)\.(?:masked_bias|mask|causal_mask)"
    r"|(?:model\.)?(?:v_head|value_head|reward_head|regression_head|score|classifier|qa_outputs)\..+"
)
MASK = re.compile(r".+\.(?:attn|attention|self_attn)\.bias")  # GPT-2's name for [1, 1, T, T], and others' for a weight


def without_leftovers(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """Leave out the tensors that no model of this kind reads.

    Args:
        config: the checkpoint's config.json.
        tensors: all its tensors, by name.

    Returns:
        The other tensors by name, and the names of those that were left out, sorted.
    """
    if dense_of(config) is None:
        return dict(tensors), ()
    ignored = {name for name, tensor in tensors.items() if _is_leftover(tensor)}
    return {name: tensor for name, tensor in tensors.items() if name not in ignored}, tuple(sorted(ignored))


def _is_leftover(tensor: TensorInfo) -> bool:
    return bool(LEFTOVER.fullmatch(tensor.name) or (MASK.fullmatch(tensor.name) and len(tensor.shape) == 4))
