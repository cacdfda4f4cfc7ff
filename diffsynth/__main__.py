"""``python -m diffsynth`` equals ``diffsynth``."""

from diffsynth.cli import main

if __name__ == "__main__":
    main()
