"""What evaluate is made of: the cases of a split, the pictures drawn of them, the figures measured on the pictures."""
