"""Frames to faces and crops."""
