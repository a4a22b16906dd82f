"""What makes other projects know our layers; each module needs its project installed."""
