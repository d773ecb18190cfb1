"""What one inference is: its record, whether it is a root or inside another one, and what is known of its model."""
