"""Run the cells of a tutorial: a JSON list of sources in, a JSON list of their outputs out."""

import contextlib
import io
import json
import sys

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt


def main() -> None:
    """Read the sources from standard input; write what each printed and drew to standard output."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    results = []
    for source in json.load(sys.stdin):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, "<cell>", "exec"), namespace)
        results.append({"text": printed.getvalue(), "figures": [svg(each) for each in plt.get_fignums()]})
        plt.close("all")
    print(json.dumps(results))


def svg(figure: int) -> str:
    """Return an open figure as SVG."""
    file = io.StringIO()
    plt.figure(figure).savefig(file, format="svg", bbox_inches="tight")
    return file.getvalue()


if __name__ == "__main__":
    main()
