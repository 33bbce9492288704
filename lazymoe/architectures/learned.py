"""Dense architectures without a record of their own here: it is made of what transformers' class does (`watching`),
and of what a config.json comes to there.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lazymoe.architectures.configs import any_rope
from lazymoe.architectures.records import Config, Dense
from lazymoe.architectures.values import LEADING, SIZES, TOKEN_IDS
from lazymoe.architectures.watching import Seen, Unfit, linear_maps, shapes_of

ASIDE = (  # config keys that tell nothing of an architecture
    "_name_or_path", "architectures", "auto_map", "dtype", "given", "torch_dtype", "transformers_version", "use_cache",
    "windows",
)  # fmt: skip
NAMED = (*SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings")  # what each class calls as it likes


def transformers_config(config: Config) -> Any:
    """Make transformers' config of a config.json; whatever its values make the class raise, it raises.

    Args:
        config: of a kind that transformers knows; keys that lead to code or other files are left out.
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig
    from transformers import __version__ as version

    kind = config["model_type"]
    if kind == "mistral" and config.get("layer_types"):
        kind = "ministral"  # what transformers 5 takes such a model for
    made = CONFIG_MAPPING[kind]
    aside = {*LEADING, "windows", "given", "auto_map", *_fixed(made)}
    kept = {k: v for k, v in config.items() if k not in aside}
    if version < "5" and kept.get("rope_parameters"):  # of which it would take no notice
        kept |= any_rope(kept, kind)
    given = json.loads(json.dumps({**kept, "model_type": kind}))
    decode = getattr(PretrainedConfig, "_decode_special_floats", None)  # transformers 5 writes infinity its own way
    return made.from_dict(decode(given) if decode else given)


def renamed(config: Config, names: Iterable[str]) -> dict[str, str]:
    """Rename tensors as transformers does when it loads a checkpoint: what they are called there, to what its class
    calls them.

    Args:
        config: of the checkpoint.
        names: all tensors'.
    """
    found = {name: name for name in names}
    for step in _steps(config["model_type"]):
        found = {name: step.rename_source_key(new)[0] for name, new in found.items()}
    return found


def _steps(kind: str, names: Iterable[str] = ()) -> list[Any]:
    """List what transformers 5 does to the names of a checkpoint.

    Args:
        kind: its model_type.
        names: of the tensors that its class has.

    Raises:
        Unfit: if it does something to the weights of one of these too.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:  # transformers 4
        return []
    steps = get_checkpoint_conversion_mapping(CLASSES.get(kind)) or get_checkpoint_conversion_mapping(kind) or []
    targets = [target for step in steps if not isinstance(step, WeightRenaming) for target in step.target_patterns]
    if any(target in name for name in names for target in targets):
        raise Unfit("has weights that transformers takes apart or puts together when it loads them")
    return [step for step in steps if isinstance(step, WeightRenaming)]


def learn(config: Config) -> Dense:
    """Learn a dense architecture from transformers.

    Args:
        config: a config.json; the record is for configs of its sizes.

    Raises:
        ValueError: if no mixture can be made of it; the message says why, as "it ..." would go on.
    """
    found = _learned(json.dumps({k: v for k, v in config.items() if k not in ASIDE}, sort_keys=True))
    if isinstance(found, str):
        raise ValueError(found)
    return found


@functools.lru_cache(maxsize=64)
def _learned(text: str) -> Dense | str:
    """Learn as `learn` does, from a config as JSON; give the reason if that can't be."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers import __version__ as version

    config = json.loads(text)
    if str(config.get("model_type")) not in CONFIG_MAPPING:  # config.json may have anything there
        return f"is none that transformers {version} knows"
    try:
        made = transformers_config(config)
        if type(made) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            return f"has no causal language model in transformers {version}"
        seen = Seen(made)
        record = _record(config, seen)
        _steps(config["model_type"], seen.model.state_dict())
        return record
    except Unfit as e:
        return str(e)
    except Exception as e:  # whatever a config's values make the class raise
        return f"can't be made by transformers {version} ({_line(e)})"


def _line(e: Exception) -> str:
    """Give what an exception says, in one line."""
    return " ".join(str(e).split())[:150] or type(e).__name__


def _record(config: Config, seen: Seen) -> Dense:
    """Make the record of what was seen.

    Args:
        config: what the model was made of.
        seen: the model.

    Raises:
        Unfit: if no mixture can be made of it.
    """
    import torch

    made, name = seen.model.config, seen.feed_forward()
    inside = shapes_of(seen.layers[0].get_submodule(name))
    each = [{n: s for n, s in shapes_of(layer).items() if not n.startswith(f"{name}.")} for layer in seen.layers]
    alike = all(one == each[0] for one in each)
    prefix = f"{seen.before}{seen.path}.{{layer}}."
    embeddings, head = seen.ends()
    within = prefix.partition("{")[0]
    outer = {n: s for n, s in shapes_of(seen.model).items() if not n.startswith(within)}
    first, last = {embeddings: outer.pop(embeddings)}, {head: outer.pop(head)}
    down, adds = seen.ending(name)
    maps = {n: module for layer in seen.layers for n, module in linear_maps(layer).items()}
    defaults = _defaults(made, inside.get(f"{down}.weight", ()))
    return Dense(
        str(config["model_type"]),
        outer=_in_words(first | outer | last, defaults["vocab_size"]),
        layer=_in_words(each[0]) if alike else {},
        each=() if alike else tuple(_in_words(one) for one in each),
        ffn={_role(n, down): (f"{name}.{n}", words) for n, words in _in_words(inside).items()},
        defaults=defaults,
        settle=functools.partial(_settle, defaults=defaults),
        windows=lambda _: _windows(made),
        prefix=prefix,
        head=head,
        adds=adds,
        maps=frozenset(f"{n}.weight" for n in maps if not n.startswith(f"{name}.")),
        turned=frozenset(f"{n}.weight" for n, module in maps.items() if not isinstance(module, torch.nn.Linear)),
        gives=seen.gives,
    )


def _in_words(shapes: Mapping[str, tuple[int, ...]], vocabulary: int = 0) -> dict[str, str]:
    """Spell shapes as a record has them: in numbers, but for rows that are tokens."""

    def spelled(sizes: tuple[int, ...]) -> Iterator[str]:
        for place, size in enumerate(sizes):
            yield "vocab" if place == 0 and size == vocabulary else str(size)

    return {name: " ".join(spelled(sizes)) for name, sizes in shapes.items()}


def _role(name: str, down: str) -> str:
    """Name the role of a feed-forward network's tensor: what begins with "down" adds up to what it gives."""
    return {f"{down}.weight": "down", f"{down}.bias": "down_bias"}.get(name, name.removesuffix(".weight"))


def general_keys(made: Any) -> set[str]:
    """Name the config keys that tell nothing of an architecture, that lead to code or other files, or that the class
    works out for itself.

    Args:
        made: transformers' config.
    """
    from transformers import PretrainedConfig

    aside = {*LEADING, *ASIDE, "model_type", "rope_scaling", *_fixed(type(made))}
    return (PretrainedConfig().to_dict().keys() | aside) - {"tie_word_embeddings", *TOKEN_IDS}


def _fixed(kind: type) -> set[str]:
    """Name the keys of a config's class that can't be set."""
    return {name for name, of in inspect.getmembers(kind) if isinstance(of, property) and of.fset is None}


def _defaults(made: Any, down: tuple[int, ...]) -> dict[str, Any]:
    """Give what a config comes to in transformers: the keys that its class has, and sizes by their usual names.

    Args:
        made: transformers' config.
        down: shape of the map that a feed-forward network ends in; empty if there is none.
    """
    full, general = json.loads(json.dumps(made.to_dict(), default=str)), general_keys(made)
    found = {key: value for key, value in full.items() if key not in general}
    heads = _stated(made, "num_attention_heads") or 1
    found |= {key: found.get(key) or _stated(made, key) for key in NAMED}
    inner = max(down) if down else 0
    found["num_attention_heads"] = heads
    found["num_key_value_heads"] = found["num_key_value_heads"] or heads
    found["head_dim"] = found["head_dim"] or made.hidden_size // heads
    if not isinstance(found["intermediate_size"], int):
        found["intermediate_size"] = inner or made.hidden_size
    found["tie_word_embeddings"] = bool(_stated(made, "tie_word_embeddings"))
    return {key: value for key, value in found.items() if value is not None}


def _settle(full: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Give the keys of a config what they come to in transformers; what was given stays under ``given``."""
    full.setdefault("given", dict(full))
    full.update(defaults)


def _stated(made: Any, key: str) -> Any:
    """Give a value of transformers' config by its usual name; None where it has none for all layers."""
    try:
        return getattr(made, key, None)
    except Exception:  # transformers 5 raises one of its own where layers differ
        return None


def _windows(made: Any) -> list[int | None]:
    """List how far attention looks back in each layer, by the usual keys."""
    size, layers, types = _stated(made, "sliding_window"), made.num_hidden_layers, _stated(made, "layer_types")
    if types is None:
        return [size if _stated(made, "use_sliding_window") is not False else None] * layers
    return [size if kind == "sliding_attention" else None for kind in types]
