"""fusetune: fine-tune pretrained models on tables of text, images, audio, numbers and categories."""
