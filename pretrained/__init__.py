"""The bundled checkpoint `emonet-lite`, and model cards."""
