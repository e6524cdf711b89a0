"""What runs inside the sandbox: the standard library only, nothing of the rest of malora_jax."""
