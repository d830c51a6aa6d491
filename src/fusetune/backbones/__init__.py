"""Pretrained encoders of text, images and audio: load, freeze, adapt, save."""
