"""Reviews in your own tool: posts go out to Label Studio or a table, decisions come back line by line.

`tasks` gathers what is to be reviewed, `label_studio` and `table` write and read it, `reading` tells what
came back and enters it into the ledger. What is read is data: the ledger decides what of it is taken.
"""

from __future__ import annotations

from selftrain.review.exchange.exchange_import import Imported, import_reviews
from selftrain.review.exchange.exchange_tasks import Task, gather_tasks

__all__ = ["Imported", "Task", "gather_tasks", "import_reviews"]
