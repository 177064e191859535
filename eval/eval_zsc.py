"""`amp eval zsc`, from a checkout: zero-shot classification and retrieval."""

from amp.commands.eval.zsc import main
from amp.run.console import run_script

if __name__ == "__main__":
    run_script(main)
