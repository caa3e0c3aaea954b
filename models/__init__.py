"""Decoders: one flat list of blocks, one file per mixer, and the state as a value outside the modules."""
