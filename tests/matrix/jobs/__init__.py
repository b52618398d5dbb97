"""Job modules, each as a user of that worker writes it; real worker processes import them."""
