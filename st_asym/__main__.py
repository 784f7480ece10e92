"""``python -m st_asym``: the same as ``st-asym``."""

if __name__ == "__main__":
    from st_asym.cli import app

    app(prog_name="st-asym")
