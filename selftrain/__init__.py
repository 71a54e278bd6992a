"""Multi-agent verified self-training on text-and-image posts.

From Python: ``from selftrain.run import start``, then
``for round in start(RECIPE, out=DIR).rounds(): ...``.
Importing this package loads neither torch nor pydantic.
"""

from selftrain._util.package_names import check_names

__version__ = "0.1.0"

check_names()
