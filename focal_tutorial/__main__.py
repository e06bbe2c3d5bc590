"""`python -m focal_tutorial` is `focal-tutorial`; torchrun wants it in this form."""

from focal_tutorial.cli import main

if __name__ == "__main__":
    main()
