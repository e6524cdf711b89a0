"""Programs that run inside the sandbox: standard library only, no import from malora_jax."""
