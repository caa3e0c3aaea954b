"""The command line. The answer goes to stdout, everything else to stderr; errors decide the exit code.

Nothing here imports torch before a command runs, so that `--help` is quick.
"""
