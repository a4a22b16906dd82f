"""``python -m acmix_pvt COMMAND``; without a command it lists them."""

from acmix.commands import main

if __name__ == "__main__":
    main("acmix_pvt")
