"""Where clips are worked on: this machine, or many."""
