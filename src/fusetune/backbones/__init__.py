"""Pretrained encoders of text, images and audio: found, loaded, frozen, saved."""
