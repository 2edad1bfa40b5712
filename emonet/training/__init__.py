"""Training of EmoNet: fine-tuning on expression labels, and pretraining of all outputs."""
