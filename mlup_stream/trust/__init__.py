"""What a file may import and call: levels of trust, ready lists, and how they are held while a pickle is loaded."""
