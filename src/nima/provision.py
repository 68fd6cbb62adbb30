"""What set-up puts in place beside the environment, so that no network is needed later.

`python -m nima.provision` in the project's root fetches the data packages that params.yaml pins, and
writes the page that `dvc plots` fills (.dvc/plots/page.html, git-ignored), its charts' JavaScript inside.
"""

import sys
from pathlib import Path

import vl_convert

from nima.corpus.sources.sources import fetch_packages
from nima.workspace import runtime
from nima.workspace.errors import UserError
from nima.workspace.params import params_file

# {plot_divs} is DVC's placeholder; without one for scripts, DVC adds none that would come from the network.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Nima: plots</title>
{refresh_tag}
<style>
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1300px; padding: 0 1rem; }
  h1 { font-size: 1.4rem; }
  main { display: flex; flex-wrap: wrap; gap: 1.5rem; }
  main > div, main > p { border: 1px solid #dfe3ea; border-radius: 8px; padding: .8rem; overflow-x: auto; }
  main img { max-width: 100%; height: auto; }
  table { border-collapse: collapse; }
  th, td { padding: .2rem .7rem; border-bottom: 1px solid #dfe3ea; text-align: left; }
</style>
<script>
JAVASCRIPT
</script>
</head>
<body>
<h1>Plots</h1>
<main>
{plot_divs}
</main>
</body>
</html>
"""


def main() -> None:
    root = Path.cwd()
    settings = params_file.load(root / "params.yaml")
    benchmarks = settings.split.leakage.benchmarks
    fetch_packages([*settings.prepare.sources, *benchmarks], runtime.load(root).packages)
    write_plots_page(root / ".dvc" / "plots" / "page.html")


def write_plots_page(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Inside a script element, "</script" would end it.
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg] # its stub asks for an optional snippet.replace("</script", "<\\/script")
    path.write_text(PAGE.replace("JAVASCRIPT", bundle), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
