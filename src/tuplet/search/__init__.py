"""Pictures indexed by their embeddings: what is near what, and what is there twice."""

from tuplet.errors import require_extra

# Here, so that each way into the package gets the line that names the extra.
require_extra("search", "lancedb", purpose="tuplet.search")
