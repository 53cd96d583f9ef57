"""Messages over open WebSockets, and what of an identity's limit is charged ahead for them."""
