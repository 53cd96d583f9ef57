"""The places that requests hold while they run, as each worker tells the store of its own."""
