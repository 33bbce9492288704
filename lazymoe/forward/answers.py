"""What a model in memory answers, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TextStreamer


class _Pieces(TextStreamer):
    """Hands on each piece of an answer as soon as its words are whole."""

    def __init__(self, tokenizer: Any, said: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._said = said

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._said(text)


def answer(
    model: Any,
    tokenizer: Any,
    messages: Sequence[dict[str, str]],
    said: Callable[[str], None],
    longest: int,
    **options: Any,
) -> None:
    """Go on with the last message, which is the model's and may be empty.

    A model without a chat template goes on with the last question as a text.

    Args:
        model, tokenizer: as `loading` gives them.
        messages: of a chat, each with its role and content, the model's own last.
        said: called with each piece as it comes.
        longest: the most tokens.
        options: of transformers' ``generate``.
    """
    *before, begun = messages
    if tokenizer.chat_template:
        prompt = tokenizer.apply_chat_template(before, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(prompt + begun["content"], add_special_tokens=False, return_tensors="pt")
    else:
        inputs = tokenizer(before[-1]["content"] + begun["content"], return_tensors="pt")
    wanted = {k: v.to(model.device) for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
    streamer = _Pieces(tokenizer, said)
    end = tokenizer.eos_token_id
    model.generate(**wanted, streamer=streamer, max_new_tokens=longest, pad_token_id=end, **options)
