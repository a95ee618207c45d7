"""What predictions say of a classifier: counts of confused classes, recall per class, pictures of them."""
