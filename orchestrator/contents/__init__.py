"""What is in an HDF5 result, whatever the way it was written: its digest, and what two of them have different.

``docs/reference/content-digest.md`` says what counts as content and what doesn't.
"""

from orchestrator.contents.comparing import Comparison, Difference, Verdict, What, compare
from orchestrator.contents.digests import ContentDigest, content_digest

__all__ = ["Comparison", "ContentDigest", "Difference", "Verdict", "What", "compare", "content_digest"]
