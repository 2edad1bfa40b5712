"""The EmoNet model package: tensors in, tensors out. It knows no video and no Ray."""
