"""Programs for whoever works on cdgrad; nothing here ships."""
