"""`python -m fusetune`, which `torchrun -m fusetune` and `accelerate launch -m fusetune` run as well."""

from fusetune.cli.main import main

if __name__ == "__main__":
    main()
