"""Dense architectures without a record of their own here: transformers is asked for it.

Its own class is made of the config, without weights, and reads a short text in torch's fake mode, where tensors have
shapes and nothing is computed. What its layers are, which module is the feed-forward network, what it is given and what
comes of it is seen, so no list says what can be taken. No code but transformers' own runs.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple

from lazymoe.architectures.records import Config, Dense
from lazymoe.architectures.values import LEADING, SIZES, TOKEN_IDS

if TYPE_CHECKING:
    from torch import Tensor, nn

TOKENS = 7  # of the text that is read
ASIDE = (  # config keys that tell nothing of an architecture
    "_name_or_path", "architectures", "auto_map", "dtype", "given", "torch_dtype", "transformers_version", "use_cache",
    "windows",
)  # fmt: skip
NAMED = (*SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings")  # what each class calls as it likes


class Call(NamedTuple):
    """How a module of a layer was called: in which order, with which values that aren't None, and what came of it."""

    path: str
    order: int
    given: tuple[Any, ...]
    made: Any


def transformers_config(config: Config) -> Any:
    """Make transformers' config of a config.json; whatever its values make the class raise, it raises.

    Args:
        config: of a kind that transformers knows; keys that lead to code or other files are left out.
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig

    kind = config["model_type"]
    if kind == "mistral" and config.get("layer_types"):
        kind = "ministral"  # what transformers 5 takes such a model for
    made = CONFIG_MAPPING[kind]
    aside = {*LEADING, "windows", "given", "auto_map", *_fixed(made)}
    kept = {k: v for k, v in config.items() if k not in aside}
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
        _Unfit: if it does something to the weights of one of these too.
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
        raise _Unfit("has weights that transformers takes apart or puts together when it loads them")
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
    if config.get("model_type") not in CONFIG_MAPPING:
        return f"is none that transformers {version} knows"
    try:
        made = transformers_config(config)
        if type(made) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            return f"has no causal language model in transformers {version}"
        seen = _Seen(made)
        record = seen.record(config)
        _steps(config["model_type"], seen.model.state_dict())
        return record
    except _Unfit as e:
        return str(e)
    except Exception as e:  # whatever a config's values make the class raise
        return f"can't be made by transformers {version} ({_line(e)})"


class _Unfit(ValueError):
    """Why no mixture can be made of an architecture."""


def _line(e: Exception) -> str:
    """Give what an exception says, in one line."""
    return " ".join(str(e).split())[:150] or type(e).__name__


class _Seen:
    """A model that has read a text without weights, and what was seen of that.

    Attributes:
        model: transformers' model.
        path: name of the list of its layers.
        layers: the layers.
        calls: of each layer, how its modules were called.
        states: what each layer was given, and what it gave.
        aside: whether something that layers have left for later ones was taken away.
        gives: how long a tuple a layer gives, 0 for its states by themselves.
    """

    def __init__(self, config: Any) -> None:
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode
        from transformers import AutoModelForCausalLM

        config.use_cache = False
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            self.model: Any = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
            ).eval()
            self.path, self.layers = layers_of(self.model)
            if any(".experts." in name for name, _ in self.layers.named_parameters()):
                raise _Unfit("is a mixture of experts already")
            if any(getattr(module, "is_causal", True) is False for module in self.layers.modules()):
                raise _Unfit("has attention that looks both ways")
            self.calls: list[list[Call]] = [[] for _ in self.layers]
            self.states: list[tuple[Any, Any]] = []  # what each layer is given and gives
            self.aside = False
            for layer, calls in zip(self.layers, self.calls, strict=True):
                layer.register_forward_pre_hook(self._take_away, with_kwargs=True)
                layer.register_forward_hook(self._watch_layer, with_kwargs=True)
                for path, module in layer.named_modules():
                    if path:
                        module.register_forward_hook(self._watch(path, calls), with_kwargs=True)
            try:
                self.model(input_ids=torch.zeros(1, TOKENS, dtype=torch.int64), use_cache=False)
            except LookupError:
                if self.aside:  # a sweep that was stopped couldn't go on
                    raise _Unfit("has layers that share keys and values") from None
                raise
        self.gives = len(self.states[-1][1]) if self.states and isinstance(self.states[-1][1], tuple) else 0

    def _take_away(self, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Leave a layer nothing of those before it but their states."""
        for value in kwargs.values():
            if isinstance(value, MutableMapping) and value:
                value.clear()
                self.aside = True

    def _watch_layer(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
        self.states.append((next(iter((*args, *kwargs.values()))), made))

    def _watch(self, path: str, calls: list[Call]) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
            given = tuple(value for value in (*args, *kwargs.values()) if value is not None)
            calls.append(Call(path, len(calls), given, made))

        return hook

    def record(self, config: Config) -> Dense:
        """Make the record.

        Args:
            config: what the model was made of.

        Raises:
            _Unfit: if no mixture can be made of it.
        """
        made = self.model.config
        self._check_layers(made)
        networks = [self._network(i) for i in range(len(self.layers))]
        if len(set(networks)) > 1:
            raise _Unfit(f"has feed-forward networks by several names ({', '.join(sorted(set(networks)))})")
        name = networks[0]
        inside = [_shapes(layer.get_submodule(name)) for layer in self.layers]
        if any(one != inside[0] for one in inside):
            raise _Unfit(f"has feed-forward networks of several sizes ('{name}')")
        self._check_sharing()

        each = [{n: s for n, s in _shapes(layer).items() if not n.startswith(f"{name}.")} for layer in self.layers]
        alike = all(one == each[0] for one in each)
        prefix = f"{self._base}{self.path}.{{layer}}."
        embeddings, head = (self._name_of(module) for module in self._ends())
        within = prefix.partition("{")[0]
        outer = {n: s for n, s in _shapes(self.model).items() if not n.startswith(within)}
        first, last = {embeddings: outer.pop(embeddings)}, {head: outer.pop(head)}
        down, adds = self._ending(name)
        defaults = _defaults(made, inside[0].get(f"{down}.weight", ()))
        return Dense(
            str(config["model_type"]),
            outer=_in_words(first | outer | last, defaults["vocab_size"]),
            layer=_in_words(each[0]) if alike else {},
            each=() if alike else tuple(_in_words(one) for one in each),
            ffn={_role(n, down): (f"{name}.{n}", words) for n, words in _in_words(inside[0]).items()},
            defaults=defaults,
            settle=functools.partial(_settle, defaults=defaults),
            windows=lambda _: _windows(made),
            prefix=prefix,
            head=head,
            adds=adds,
            maps=frozenset(f"{n}.weight" for layer in self.layers for n in linear_maps(layer, name)),
            gives=self.gives,
        )

    @property
    def _base(self) -> str:
        """What is before the decoder's names."""
        prefix = self.model.base_model_prefix
        return f"{prefix}." if self.model.base_model is not self.model else ""

    def _name_of(self, module: nn.Module | None) -> str:
        """Name the weight of one of the model's modules."""
        for name, other in self.model.named_modules():
            if other is module:
                return f"{name}.weight"
        raise _Unfit("has no embeddings, or no output head, of its own")

    def _ends(self) -> tuple[Any, Any]:
        return self.model.get_input_embeddings(), self.model.get_output_embeddings()

    def _check_layers(self, made: Any) -> None:
        """Check that every layer reads the states of the text and gives them on, once.

        Raises:
            _Unfit: if not.
        """
        import torch

        want = (1, TOKENS, made.hidden_size)
        for given, came in self.states:
            states = came[0] if isinstance(came, tuple) else came
            if any(not isinstance(t, torch.Tensor) or tuple(t.shape) != want for t in (given, states)):
                raise _Unfit("has layers that read something else than one state for each token")
        if len(self.states) != len(self.layers):
            raise _Unfit(f"calls its {len(self.layers)} layers {len(self.states)} times for a text")

    def _network(self, number: int) -> str:
        """Name the feed-forward module of a layer: of what is given the states of tokens and nothing else, and gives
        the like, the largest.

        Raises:
            _Unfit: if there is none.
        """
        import torch

        layer, calls = self.layers[number], [call for call in self.calls[number] if "." not in call.path]
        states = self.states[number][0].shape
        found: dict[str, int] = {}
        others: list[str] = []
        for call in calls:
            module = layer.get_submodule(call.path)
            if sum(p.dim() > 1 for p in module.parameters()) < 2:  # a norm, or a single map
                continue
            first = call.given[0] if call.given else None
            named = list(inspect.signature(module.forward).parameters)
            like = isinstance(first, torch.Tensor) and first.shape == states
            alone = len(named) == len(call.given) == 1 and like
            if alone and isinstance(call.made, torch.Tensor) and call.made.shape == states:
                found[call.path] = sum(p.numel() for p in module.parameters())
            elif like:
                others.append(f"'{call.path}', which is given {' and '.join(named)}")
        for path in found:
            if sum(call.path == path for call in calls) > 1:
                raise _Unfit(f"calls its feed-forward network ('{path}') more than once in a layer")
        if found:
            return max(found, key=lambda path: found[path])
        plain = [n for n, module in layer.named_children() if isinstance(module, torch.nn.Linear)]
        if len(plain) > 1:
            raise _Unfit(f"has no module for a layer's feed-forward network, only maps in the layer ({plain[0]} ...)")
        if len(others) > 1:
            raise _Unfit(f"has a feed-forward network with more than one input ({others[-1]})")
        some = "" if number == 0 and len(self.layers) == 1 else f" in layer {number}"
        raise _Unfit(f"has no feed-forward network of its own{some}")

    def _check_sharing(self) -> None:
        """Check that no two layers have a weight in common.

        Raises:
            _Unfit: if they have.
        """
        owners: dict[int, int] = {}
        for number, layer in enumerate(self.layers):
            for name, parameter in layer.named_parameters():
                if owners.setdefault(id(parameter), number) != number:
                    raise _Unfit(f"has layers that share weights ('{name}')")

    def _ending(self, name: str) -> tuple[str, bool]:
        """Tell which map a feed-forward network ends in, "" if it ends otherwise; and whether what it gives is added as
        it is: no module with weights reads it in the layer."""
        layer, calls = self.layers[0], self.calls[0]
        [whole] = [call for call in calls if call.path == name]
        network = layer.get_submodule(name)
        inside = [c for c in calls if c.path.startswith(f"{name}.") and _is_whole(network, c.path[len(name) + 1 :])]
        last = max(inside, key=lambda call: call.order).path[len(name) + 1 :] if inside else ""
        matrix = getattr(network.get_submodule(last), "weight", None) if last else None
        ends = matrix is not None and matrix.dim() == 2
        later = (call for call in calls if call.order > whole.order and any(v is whole.made for v in call.given))
        normed = any(any(True for _ in layer.get_submodule(call.path).parameters()) for call in later)
        return last if ends else "", not normed


def layers_of(model: Any) -> tuple[str, Any]:
    """Find the layers of a decoder: the outermost list of as many modules as its config has layers.

    Args:
        model: transformers' model; its names are those of ``base_model``.

    Raises:
        ValueError: if there is none.
    """
    import torch

    wanted = _stated(model.config, "num_hidden_layers")
    for path, module in model.base_model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted:
            return path, module
    raise _Unfit("has no list of layers")


def linear_maps(layer: nn.Module, feed_forward: str) -> dict[str, nn.Linear]:
    """List the linear maps of a layer outside its feed-forward network, by name.

    Args:
        layer: the layer.
        feed_forward: name of its feed-forward module.
    """
    import torch

    return {
        name: module
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith(feed_forward + ".")
    }


def _is_whole(network: nn.Module, path: str) -> bool:
    """Tell whether a module has weights of its own and none further inside."""
    module = network.get_submodule(path)
    return bool(module._parameters) and not any(True for _ in module.children())


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """List what a module keeps on the disk, name to shape."""
    tensors: Mapping[str, Tensor] = module.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


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
