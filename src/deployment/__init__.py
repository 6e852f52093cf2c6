"""Trained models put to use: what they say of a video of one's own, and when."""
