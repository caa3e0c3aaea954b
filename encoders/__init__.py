"""Pixels in, embeddings out: safe reading of images and videos, vision towers, projectors."""
