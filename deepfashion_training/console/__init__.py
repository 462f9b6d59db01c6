"""What the commands have in common at the edge to the person who types them."""
