"""Speed and memory, crashes, and chips that are not here."""
