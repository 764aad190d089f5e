"""`python -m cli`: the command `model-serving` where the project is not installed, for example in a container."""

from cli.main import run

if __name__ == "__main__":
    run()
