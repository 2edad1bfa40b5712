"""Data package: the bundled checkpoint `emonet-lite` and its model card."""
