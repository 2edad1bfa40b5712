"""What EmoNet learns from."""
