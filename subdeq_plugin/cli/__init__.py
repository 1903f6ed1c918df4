"""The command line: thin commands that parse, call and print."""

__all__: list[str] = []
