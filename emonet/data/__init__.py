"""Data sets that EmoNet is trained and evaluated on."""
