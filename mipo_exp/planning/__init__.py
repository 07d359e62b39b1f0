"""What a run would take: its tokens, its time and its memory, before it starts."""
