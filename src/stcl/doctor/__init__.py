"""Is the data right? What is on disk, what is missing or odd, what that means and what to do."""
