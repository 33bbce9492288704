"""What a dense model of transformers' own does with a text, watched without weights.

It reads a short text in torch's fake mode, where tensors have shapes and nothing is computed. What its layers are,
which module is the feed-forward network, what that is given and what comes of it is seen, so no list says what can be
taken. No code but transformers' own runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

TOKENS = 7  # of the text that is read


class Unfit(ValueError):
    """Why no mixture can be made of an architecture."""


class Call(NamedTuple):
    """How a module of a layer was called: in which order, with which values that aren't None, and what came of it."""

    path: str
    order: int
    given: tuple[Any, ...]
    made: Any


class Seen:
    """A model that has read a text without weights, and what was seen of that.

    Attributes:
        model: transformers' model.
        path: name of the list of its layers.
        layers: the layers.
        calls: of each layer, how its modules were called.
        states: what each layer was given, and what it gave.
        aside: whether something that layers have left for later ones was taken away.
        gives: how long a tuple a layer gives, 0 for its states by themselves.
        before: what is before the decoder's names.
    """

    def __init__(self, config: Any) -> None:
        """Make a model without weights, and have it read a text.

        Args:
            config: transformers' config, changed in place.

        Raises:
            Unfit: if no mixture can be made of it, as far as that tells.
        """
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode
        from transformers import AutoModelForCausalLM

        config.use_cache = False
        with FakeTensorMode(allow_non_fake_inputs=True):
            self.model: Any = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
            ).eval()
            self.path, self.layers = layers_of(self.model)
            if any(".experts." in name for name, _ in self.layers.named_parameters()):
                raise Unfit("is a mixture of experts already")
            if any(getattr(module, "is_causal", True) is False for module in self.layers.modules()):
                raise Unfit("has attention that looks both ways")
        self.calls: list[list[Call]] = [[] for _ in self.layers]
        self.states: list[tuple[Any, Any]] = []  # what each layer is given and gives
        self.aside = False
        for layer, calls in zip(self.layers, self.calls, strict=True):
            layer.register_forward_pre_hook(self._take_away, with_kwargs=True)
            layer.register_forward_hook(self._watch_layer, with_kwargs=True)
            for path, module in layer.named_modules():
                if path:
                    module.register_forward_hook(self._watch(path, calls), with_kwargs=True)
        try:  # out of that mode, so that masks and positions are real: some classes decide by their values
            with torch.no_grad():
                self.model(input_ids=torch.zeros(1, TOKENS, dtype=torch.int64), use_cache=False)
        except LookupError:
            if self.aside:  # a sweep that was stopped couldn't go on
                raise Unfit("has layers that share keys and values") from None
            raise
        self.before = f"{self.model.base_model_prefix}." if self.model.base_model is not self.model else ""
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

    def feed_forward(self) -> str:
        """Name the feed-forward module that every layer has.

        Raises:
            Unfit: if no mixture can be made of that.
        """
        self._check_layers()
        networks = [self._network(i) for i in range(len(self.layers))]
        if len(set(networks)) > 1:
            raise Unfit(f"has feed-forward networks by several names ({', '.join(sorted(set(networks)))})")
        name = networks[0]
        inside = [shapes_of(layer.get_submodule(name)) for layer in self.layers]
        if any(one != inside[0] for one in inside):
            raise Unfit(f"has feed-forward networks of several sizes ('{name}')")
        self._check_sharing()
        return name

    def ending(self, name: str) -> tuple[str, bool]:
        """Tell which map a feed-forward network ends in, "" if it ends otherwise; and whether what it gives is added as
        it is: no module with weights reads it in the layer.

        Args:
            name: of the feed-forward module.
        """
        layer, calls = self.layers[0], self.calls[0]
        [whole] = [call for call in calls if call.path == name]
        network = layer.get_submodule(name)
        inside = [c for c in calls if c.path.startswith(f"{name}.") and _is_whole(network, c.path[len(name) + 1 :])]
        last = max(inside, key=lambda call: call.order).path[len(name) + 1 :] if inside else ""
        later = (call for call in calls if call.order > whole.order and any(v is whole.made for v in call.given))
        normed = any(any(True for _ in layer.get_submodule(call.path).parameters()) for call in later)
        return last if last in linear_maps(network) else "", not normed

    def ends(self) -> tuple[str, str]:
        """Name the weights of the token embeddings and of the output head.

        Raises:
            Unfit: if there are none.
        """
        return self._name_of(self.model.get_input_embeddings()), self._name_of(self.model.get_output_embeddings())

    def _check_layers(self) -> None:
        """Check that every layer reads the states of the text and gives them on, once.

        Raises:
            Unfit: if not.
        """
        import torch

        want = (1, TOKENS, self.model.config.hidden_size)
        for given, came in self.states:
            states = came[0] if isinstance(came, tuple) else came
            if any(not isinstance(t, torch.Tensor) or tuple(t.shape) != want for t in (given, states)):
                raise Unfit("has layers that read something else than one state for each token")
        if len(self.states) != len(self.layers):
            raise Unfit(f"calls its {len(self.layers)} layers {len(self.states)} times for a text")

    def _network(self, number: int) -> str:
        """Name the feed-forward module of a layer: of what is given the states of tokens and nothing else, and gives
        the like, the largest.

        Raises:
            Unfit: if there is none.
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
                raise Unfit(f"calls its feed-forward network ('{path}') more than once in a layer")
        if found:
            return max(found, key=lambda path: found[path])
        plain = [n for n, module in layer.named_children() if isinstance(module, torch.nn.Linear)]
        if len(plain) > 1:
            raise Unfit(f"has no module for a layer's feed-forward network, only maps in the layer ({plain[0]} ...)")
        if len(others) > 1:
            raise Unfit(f"has a feed-forward network with more than one input ({others[-1]})")
        some = "" if number == 0 and len(self.layers) == 1 else f" in layer {number}"
        raise Unfit(f"has no feed-forward network of its own{some}")

    def _check_sharing(self) -> None:
        """Check that no two layers have a weight in common.

        Raises:
            Unfit: if they have.
        """
        owners: dict[int, int] = {}
        for number, layer in enumerate(self.layers):
            for name, parameter in layer.named_parameters():
                if owners.setdefault(id(parameter), number) != number:
                    raise Unfit(f"has layers that share weights ('{name}')")

    def _name_of(self, module: nn.Module | None) -> str:
        """Name the weight of one of the model's modules."""
        for name, other in self.model.named_modules():
            if other is module:
                return f"{name}.weight"
        raise Unfit("has no embeddings, or no output head, of its own")


def decoder_of(model: Any) -> Any:
    """Find what comes before a model's head; transformers 4 has a few classes that don't name it.

    Args:
        model: transformers' model.
    """
    base = model.base_model
    return base if base is not model else model.get_submodule(layers_of(model)[0].partition(".")[0])


def layers_of(model: Any) -> tuple[str, Any]:
    """Find the layers of a decoder: the outermost list of as many modules as its config has layers.

    Args:
        model: transformers' model; its names are those of ``base_model``.

    Raises:
        ValueError: if there is none.
    """
    import torch

    wanted = getattr(model.config, "num_hidden_layers", None)
    for path, module in model.base_model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted:
            return path, module
    raise Unfit("has no list of layers")


def linear_maps(layer: nn.Module) -> dict[str, Any]:
    """List the linear maps of a layer by name: ``nn.Linear``, and GPT-2's ``Conv1D``, whose weights lie as
    ``[in, out]``.

    Args:
        layer: the layer.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    return {name: module for name, module in layer.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))}


def width_of(linear: Any) -> int:
    """Give how wide what a linear map gives is.

    Args:
        linear: one of those that `linear_maps` lists.
    """
    return int(getattr(linear, "nf", 0) or linear.out_features)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """List what a module keeps on the disk, name to shape.

    Args:
        module: any.
    """
    tensors: Mapping[str, Tensor] = module.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _is_whole(network: nn.Module, path: str) -> bool:
    """Tell whether a module has weights of its own and none further inside."""
    module = network.get_submodule(path)
    return bool(module._parameters) and not any(True for _ in module.children())
