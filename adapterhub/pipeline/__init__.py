"""Ways through several rooms: a recipe and its data become a published version."""
