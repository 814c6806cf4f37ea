"""Examples to a LoRA adapter."""
