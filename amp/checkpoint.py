"""`python -m amp.checkpoint convert FROM TO`: a folder to a published checkpoint, and back."""

from amp.commands.convert import main
from amp.run.console import run_script

if __name__ == "__main__":
    run_script(main)
