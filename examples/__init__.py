"""Programs to read and to run beside the product; nothing imports them."""
