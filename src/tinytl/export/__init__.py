"""Export the plain network of an adapter to other runtimes, checked in them."""
