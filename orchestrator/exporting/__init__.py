"""Runs told to others: standards of archives and catalogues, and a paragraph for a paper.

In: a run's record (`provenance.RunDetail`) and the files in its directory, as an `Account`. Out: files in a folder, or
a text, one module per format. Nothing here writes to the store or into the run's directory, and nothing uses
the network.
"""

from orchestrator.exporting.account import Account
from orchestrator.exporting.writing import Exported, Format, export, exported_text

__all__ = ["Account", "Exported", "Format", "export", "exported_text"]
