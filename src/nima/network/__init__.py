"""The decoder: its layers, their fused passes, and its weights in the Hugging Face layout."""
