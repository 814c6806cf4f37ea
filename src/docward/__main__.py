"""`python -m docward`, the form that `accelerate launch -m docward tune RECIPE` wants."""

from docward.cli.main import main

if __name__ == "__main__":
    main()
