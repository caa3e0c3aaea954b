"""SmolVLM2 (`model_type` smolvlm): Idefics3's decoder; what it does with videos is the encoder's part."""

from fluvial.models.checkpoints.idefics3 import decoder_config, plan

__all__ = ["decoder_config", "plan"]
