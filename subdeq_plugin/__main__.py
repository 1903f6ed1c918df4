"""`python -m subdeq_plugin` is the `subdeq` command."""

from .cli.main import run

__all__: list[str] = []

if __name__ == "__main__":
    run()
