"""How EmoNet learns."""
