"""Which dense models can become which mixture of experts: records of data.

`records` says what a record is, `dense` has those of the models that go in, `hosts` those of the mixtures, a file each,
and `registry` finds the host for a model.
"""
