"""`python -m amp`, for launchers: `torchrun --nproc_per_node=8 -m amp distill ...`."""

from amp.commands import main

if __name__ == "__main__":
    main()
