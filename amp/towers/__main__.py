"""`python -m amp.towers`, as `amp models` is called too."""

from amp.commands.models import main
from amp.run.console import run_script

if __name__ == "__main__":
    run_script(main)
