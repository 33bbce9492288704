"""Dense checkpoints, as they lie in a folder or on the Hub: opened by their configs and headers, read tensor by tensor.

`opening` is the only room that knows every way of storing weights; each of the others has a reader for one of them. To
the rest of LazyMoE a tensor is a `tensors.TensorInfo`, whatever reads it.
"""
