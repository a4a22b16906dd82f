"""``python -m acmix_san COMMAND``; without a command it lists them."""

from acmix.commands import main

if __name__ == "__main__":
    main("acmix_san")
