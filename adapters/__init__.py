"""The one door to weight matrices: storage formats, LoRA plugins, ops with their kernels, chips. Imports torch only."""
