"""What a loaded encoder is: its parts, its pooling, and whether its vectors can be relied on."""
