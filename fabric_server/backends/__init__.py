"""What is remembered, remembered briefly, and told: one interface each, chosen by URL."""
