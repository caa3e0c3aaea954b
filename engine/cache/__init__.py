"""The state cache: shared prefixes are read once, whatever the architecture.

`config.py` what a caller says; `key.py` what must be equal; `chain.py` what a memory has read; `tree.py` the radix tree
of states and rows; `budget.py` bytes and eviction; `media.py` what the encoder gave; `disk.py` the second tier;
`cache.py` all of it behind one lock.
"""
