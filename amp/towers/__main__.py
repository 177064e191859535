"""`python -m amp.towers`: what can be pruned."""

from amp.commands.models import main
from amp.run.console import run_script

if __name__ == "__main__":
    run_script(main)
