"""Losses, objectives and the one training loop; pure torch but for `engine`."""
