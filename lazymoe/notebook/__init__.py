"""The panels of `LazyMoE.ipynb`: each cell of the notebook is one call of a function here."""
