"""What is worked out before the writing: routers, ``[experts, hidden]`` for each layer, and weights that experts share.

One file for each method; `compute` calls them.
"""
