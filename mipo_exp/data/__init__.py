"""From source files to examples, and from examples to the token ids of their prompts."""
