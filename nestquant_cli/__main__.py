"""`python -m nestquant_cli` is the `nestquant` command; `torchrun … -m nestquant_cli` is it on several processes."""

from .entry import main

if __name__ == "__main__":
    main()
