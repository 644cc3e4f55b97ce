"""From a network to files for other runtimes, each checked against torch before it is kept."""
