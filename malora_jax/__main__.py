"""`python -m malora_jax COMMAND …` is `malora COMMAND …`."""

from malora_jax.commands import main

if __name__ == '__main__':
    main()
