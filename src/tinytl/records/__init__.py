"""What a run leaves: results.json, and what it was made with."""
