"""``python -m shadowmmu``."""

from shadowmmu.cli import main

if __name__ == "__main__":
    main()
