"""`python -m amp.checkpoint convert FROM TO`, as `amp convert` is called too."""

from amp.commands import choose
from amp.registry import COMMANDS
from amp.run.console import run_script


def main() -> None:
    choose("python -m amp.checkpoint", COMMANDS, __doc__, ("convert",))


if __name__ == "__main__":
    run_script(main)
