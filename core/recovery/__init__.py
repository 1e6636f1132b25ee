"""Training after the cut: LoRA and distillation."""
