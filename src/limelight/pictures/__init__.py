"""Pictures of attention and of results: `terminal` for the screen, `figure` for files."""
