"""Storable states of encoded videos, and task logits computed from them."""
