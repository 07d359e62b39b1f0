"""What a finished experiment shows: figures and the HTML report."""
