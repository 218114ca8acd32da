"""``python -m serverlight`` is the command ``serverlight``."""

from serverlight.apps.cli import main

if __name__ == "__main__":
    main()
