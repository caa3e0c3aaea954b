"""Qwen3.5 without its vision tower (`model_type` qwen3_5_text): the same decoder from a flat config."""

from fluvial.models.checkpoints.qwen3_5 import decoder_config, draft_head, plan

__all__ = ["decoder_config", "draft_head", "plan"]
