"""Parts of the bench of complexity-aware training."""
